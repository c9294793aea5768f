"""`read_evaluation`: answers and scores that this package wrote, and logs of lm-evaluation-harness and inspect_ai.

The logs are read without those packages, as lm-eval 0.4.13 and inspect_ai 0.3.285 write them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation

ARMS = ("DPO", "DPO+NLL", "sft+dpo")  # the first of these is read from a run folder
ZSTD = 93  # compression in zip files that Python knows from 3.14 on
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # inspect_ai: correct, partly correct, incorrect, no answer


def read_evaluation(path: str | Path, *, metric: str | None = None) -> Evaluation:
    """Read the answers of one model, whichever trainer it comes from.

    Args:
        path: a file that `Evaluation.save` wrote; a run folder; a file for `Evaluation.from_jsonl`; lm-eval's
            `samples_TASK_DATE.jsonl` (`--log_samples`); or a log of inspect_ai (`.eval` or `.json`).
        metric: the score, for logs with several: `acc_norm`, or with lm-eval's filter `exact_match,strict-match`.

    Raises:
        WorkbenchError: a file that is none of these, is damaged, or has other fields (another version); a metric that
            the log doesn't have, or none chosen of several (the message lists them); a score outside [0, 1].
    """
    path = Path(path)
    if path.is_dir():
        files = [path / "evaluations" / f"{name}.json" for name in ARMS]
        found = Evaluation.load(next(filter(Path.is_file, files), files[0]))
        return replace(found, name=f"{path.name}: {found.name}")
    try:
        if path.suffix == ".eval":
            return _from_inspect(_unzip(path), path, metric)
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        first = json.loads(lines[0] if lines[0].strip() != b"{" else b"\n".join(lines))
        if "samples" in first:
            return _from_inspect(first, path, metric)
        if "filtered_resps" in first or "resps" in first:
            return _from_harness([json.loads(line) for line in lines], path, metric)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, EOFError) as error:
        raise WorkbenchError(
            f"A log must be whole and have the fields of lm-eval 0.4.13 or inspect_ai 0.3. Got {path} "
            f"({type(error).__name__}: {error}). Check the path, or write prompt, answer and score to a JSONL file."
        ) from error
    if metric is not None:
        raise WorkbenchError(f"`metric` chooses a score of a log. Got {metric!r}, but {path} is none. Leave it out.")
    return Evaluation.load(path) if "n_rows" in first else Evaluation.from_jsonl(path)


def _choose(found: Iterable[str], metric: str | None, path: Path) -> str:
    """The one metric that is meant, by its whole name or without lm-eval's filter."""
    names = sorted(set(found))
    fits = [name for name in names if metric in (None, name, name.split(",")[0])]
    if len(fits) != 1:
        raise WorkbenchError(f"`metric` must name one of {'; '.join(names) or 'none'}. Got {metric!r} for {path}.")
    return fits[0]


def _from_harness(samples: list[dict[str, Any]], path: Path, metric: str | None) -> Evaluation:
    """lm-eval's samples: one for each document and filter."""
    chosen = _choose((f"{name},{s['filter']}" for s in samples for name in s["metrics"]), metric, path)
    name, wanted = chosen.split(",", 1)
    rows = []
    for sample in (s for s in samples if s["filter"] == wanted):
        asked, replies = list(sample["arguments"].values()), sample["filtered_resps"]
        answer = replies[0][0] if isinstance(replies[0], list) else replies[0]
        if isinstance(asked[0].get("arg_1"), str):  # choices; each reply is [log-likelihood, whether it is greedy]
            values = [float(value) for value, _ in replies]
            answer = asked[values.index(max(values))]["arg_1"]
        row = {"id": sample["doc_id"], "prompt": asked[0]["arg_0"], "answer": answer, "score": sample.get(name)}
        rows.append(row | {"explanation": "" if name in sample else f"the log has no {name}"})
    task = path.stem.removeprefix("samples_").rsplit("_", 1)[0]
    return Evaluation.from_rows(rows, name=path.parent.name, task=f"{task} ({chosen})", source=str(path))


def _unzip(path: Path) -> dict[str, Any]:
    """The content of an `.eval` file, in the form of a `.json` log."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith("samples/")]
            header, *samples = [json.loads(_member(archive, name)) for name in ("header.json", *names)]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    return header | {"samples": samples}


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file in the archive, decompressed."""
    info = archive.getinfo(name)
    if info.compress_type != ZSTD or archive.fp is None:
        return archive.read(name)
    import pyarrow

    archive.fp.seek(info.header_offset)
    start = archive.fp.read(30)  # the fixed part of the header, which ends with the lengths of name and extra field
    archive.fp.seek(int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little"), 1)
    return pyarrow.decompress(archive.fp.read(info.compress_size), info.file_size, codec="zstd", asbytes=True)


def _from_inspect(log: dict[str, Any], path: Path, metric: str | None) -> Evaluation:
    """A log of inspect_ai. A sample has an id, an epoch, and scores by scorer; after an error it has none."""
    if log["version"] != 2:
        raise ValueError(f"format {log['version']!r}; only format 2 is known")
    samples = log["samples"]
    chosen = _choose((name for sample in samples for name in sample.get("scores") or ()), metric, path)
    several = any(sample["epoch"] > 1 for sample in samples)
    rows = []
    for sample in samples:
        value = ((sample.get("scores") or {}).get(chosen) or {}).get("value")
        row = {"group": sample["id"], "id": f"{sample['id']}/{sample['epoch']}" if several else sample["id"]}
        row |= {"prompt": _text(sample["input"]), "answer": sample["output"].get("completion") or ""}
        row |= {"score": _GRADES.get(value, value) if isinstance(value, str) else value}
        row["n_tokens"] = (sample["output"].get("usage") or {}).get("output_tokens")
        row["explanation"] = (sample.get("error") or {}).get("message") or ("" if value is not None else "no score")
        rows.append(row)
    name, task = str(log["eval"]["model"]), f"{log['eval']['task']} ({chosen})"
    return Evaluation.from_rows(rows, name=name, task=task, source=str(path))


def _text(content: Any) -> str:
    """The text of a prompt: a string, messages, or the parts of a message. Several messages keep their roles."""
    if isinstance(content, str):
        return content
    texts = [_text(part["content"]) if "role" in part else part.get("text", "") for part in content]
    roles = [f"{part['role']}: " if "role" in part and len(content) > 1 else "" for part in content]
    return ("\n\n" if any(roles) else "").join(role + text for role, text in zip(roles, texts, strict=True))
