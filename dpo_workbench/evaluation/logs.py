"""`read_evaluation`: answers and scores that this package wrote, or from logs of lm-evaluation-harness or inspect_ai.

The logs are read without those packages, as lm-eval 0.4.12 and inspect_ai 0.3 write them.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation

ARMS = ("DPO", "DPO+NLL", "sft+dpo")  # of a run folder; the first one that is there is read
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # inspect_ai: correct, partly correct, incorrect, no answer
_HARNESS_FIELDS = ("doc_id", "arguments", "resps", "filtered_resps", "filter", "metrics")


def read_evaluation(path: str | Path, *, metric: str | None = None) -> Evaluation:
    """Read the answers of one model, whichever trainer it comes from.

    Args:
        path: a file that `Evaluation.save` wrote; a run folder; a file for `Evaluation.from_jsonl`; samples of
            lm-evaluation-harness (`--log_samples`: `samples_TASK_DATE.jsonl`, or the folder of one such file); or a log
            of inspect_ai (`.eval` or `.json`).
        metric: the score, for logs with several: `acc_norm`, or with lm-eval's filter `exact_match,strict-match`.

    Raises:
        WorkbenchError: a file that is none of these, or damaged, or of a version with other fields; a metric that is
            not in the log, or several without a choice (the message lists them); scores outside [0, 1].
    """
    path = Path(path)
    if path.is_dir():
        arms = [path / "evaluations" / f"{name}.json" for name in ARMS]
        logs = sorted(path.glob("samples_*.jsonl"))
        if len(logs) != 1 or arms[0].parent.is_dir():
            found = Evaluation.load(next(filter(Path.is_file, arms), arms[0]))
            return replace(found, name=f"{path.name}: {found.name}")
        path = logs[0]
    try:
        if path.suffix == ".eval":
            return _from_inspect(_unzip(path), path, metric)
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        first = _json(lines[0]) if lines else None
        if first is None and isinstance(whole := _json(b"\n".join(lines)), dict) and "samples" in whole:
            first = whole
        if isinstance(first, dict) and "eval" in first:
            return _from_inspect(first, path, metric)
        if isinstance(first, dict) and ("resps" in first or "filtered_resps" in first):
            return _from_harness([json.loads(line) for line in lines], path, metric)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise WorkbenchError(
            f"A log must be a whole file with the fields of lm-eval 0.4.12 or inspect_ai 0.3. Got {path} "
            f"({type(error).__name__}: {error}). Check the path, evaluate again with such a version, or write "
            "`prompt`, `answer` and `score` to a JSONL file."
        ) from error
    if metric is not None:
        raise WorkbenchError(f"`metric` chooses from the metrics of a log. Got {metric!r} for {path}. Leave it out.")
    plain = isinstance(first, dict) and "n_rows" not in first
    return Evaluation.from_jsonl(path) if plain else Evaluation.load(path)


def _json(text: bytes) -> Any:
    """The value, or None if the text is not one JSON value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _choose(found: Iterable[str], metric: str | None, path: Path) -> str:
    """The one metric that is meant."""
    names = sorted(set(found))
    fits = [name for name in names if metric is None or metric in (name, name.split(",")[0])]
    if len(fits) != 1:
        raise WorkbenchError(
            f"`metric` must name one metric of the log. Got {metric!r}. {path} has: {'; '.join(names) or 'none'}."
        )
    return fits[0]


def _from_harness(samples: Sequence[dict[str, Any]], path: Path, metric: str | None) -> Evaluation:
    """Samples of lm-evaluation-harness: one line for each document and each filter."""
    for sample in samples:
        if missing := [name for name in _HARNESS_FIELDS if name not in sample]:
            raise KeyError(f"no {missing[0]!r} in sample {sample.get('doc_id')!r}")
    chosen = _choose((f"{name},{s['filter']}" for s in samples for name in s["metrics"]), metric, path)
    name, kept_filter = chosen.split(",", 1)
    rows: list[dict[str, Any]] = []
    for sample in (s for s in samples if s["filter"] == kept_filter):
        asked = list(sample["arguments"].values())
        answer = sample["filtered_resps"][0]
        if "arg_1" in asked[0] and isinstance(asked[0]["arg_1"], str):  # choices: [log-likelihood, is greedy] of each
            values = [float(response[0]) for response in sample["filtered_resps"]]
            answer = asked[values.index(max(values))]["arg_1"]
        elif isinstance(answer, list):  # several draws: the metric is that of the first
            answer = answer[0]
        row = {"id": sample["doc_id"], "prompt": asked[0]["arg_0"], "answer": answer, "score": sample.get(name)}
        rows.append(row | ({"explanation": f"the log has no {name}"} if row["score"] is None else {}))
    task = path.stem.removeprefix("samples_").rsplit("_", 1)[0]
    return Evaluation.from_rows(rows, name=path.parent.name, task=f"{task} ({chosen})", source=str(path))


def _unzip(path: Path) -> dict[str, Any]:
    """The content of an `.eval` file, in the form of a `.json` log."""
    try:
        with zipfile.ZipFile(path) as archive:
            log = json.loads(archive.read("header.json"))
            names = [name for name in archive.namelist() if name.startswith("samples/")]
            return log | {"samples": [json.loads(archive.read(name)) for name in names]}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:  # the last: a compression unknown to Python
        raise ValueError(f"{error}; `inspect log convert --to json` writes a file that can be read") from error


def _from_inspect(log: dict[str, Any], path: Path, metric: str | None) -> Evaluation:
    """A log of inspect_ai, whose samples have an id, an epoch and the scores of one or several scorers."""
    if log["version"] != 2:
        raise ValueError(f"version {log['version']!r} of the log's format, and only 2 is known")
    scores: list[dict[str, Any]] = []
    for sample in log["samples"]:
        given = {name: score["value"] for name, score in (sample.get("scores") or {}).items()}
        parts = {f"{n}/{key}": v for n, value in given.items() if isinstance(value, dict) for key, v in value.items()}
        scores.append({n: v for n, v in given.items() if not isinstance(v, dict)} | parts)
    chosen = _choose((name for values in scores for name in values), metric, path)
    several = max(sample["epoch"] for sample in log["samples"]) > 1
    rows: list[dict[str, Any]] = []
    for sample, values in zip(log["samples"], scores, strict=True):
        value, own_id = values.get(chosen), str(sample["id"])
        score = _GRADES.get(value, value) if isinstance(value, str) else value
        row = {"id": f"{own_id}/{sample['epoch']}" if several else own_id, "group": own_id, "score": score}
        row |= {"prompt": _text(sample["input"]), "answer": _text(sample["output"].get("completion") or "")}
        row["n_tokens"] = (sample["output"].get("usage") or {}).get("output_tokens")
        if score is None:
            row["explanation"] = str((sample.get("error") or {}).get("message") or f"the log has no {chosen}")
        rows.append(row)
    name, task = str(log["eval"]["model"]), f"{log['eval']['task']} ({chosen})"
    return Evaluation.from_rows(rows, name=name, task=task, source=str(path))


def _text(content: Any) -> str:
    """Plain text of a string, a list of messages or a message's list of parts. Several messages keep their roles."""
    if isinstance(content, str):
        return content
    if "role" in content[0]:
        texts = [_text(message["content"]) for message in content]
        with_roles = [f"{m['role']}: {text}" for m, text in zip(content, texts, strict=True)]
        return texts[0] if len(texts) == 1 else "\n\n".join(with_roles)
    return "".join(part.get("text", "") for part in content)
