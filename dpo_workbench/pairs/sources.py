"""Rows of files, tables and Hub data sets, one at a time, each with its line number and its original bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import CODES, Findings, Refusal, excerpt, has_surrogate

_HEAD = 1 << 16  # bytes that decide what kind of file it is
_BLANK = re.compile(r"[\s,]*")


@dataclass
class Row:
    """One row of a source."""

    line: int
    value: Any  # what was read; None if there is a problem
    raw: bytes | None = None  # without the line break; None if the source is not text
    problem: Refusal | None = None
    number: int = 0  # among the rows, from 1; one line of a JSON array can contain several

    def original(self) -> bytes:
        """The bytes of the row, or its JSON if the source is not text."""
        if self.raw is not None:
            return self.raw
        return json.dumps(self.value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


@dataclass
class Source:
    """Where rows come from: iterate over `rows` once. `findings` collects what is unusual about the file as a whole."""

    name: str
    kind: str  # jsonl, json, csv, parquet, table or hub
    rows: Iterator[Row]
    findings: Findings


def stop(code: str, got: object, where: str, fix: str = "") -> WorkbenchError:
    """The error for a source that cannot be read."""
    return WorkbenchError(f"{CODES[code].rule} Got {excerpt(got, 300)} ({where}, {code}). {fix or CODES[code].advice}")


def open_source(source: Any) -> Source:
    """Rows of a path, `hub:owner/name`, a pandas DataFrame, a `datasets` object, or an iterable of mappings.

    Raises:
        WorkbenchError: the source cannot be read; also later, while the rows are read.
    """
    if isinstance(source, (str, Path)):
        return _hub(str(source)[4:]) if str(source).startswith("hub:") else _file(Path(source))
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas
        names = list(source.columns)
        rows: Iterable[Any] = (dict(zip(names, row, strict=True)) for row in source.itertuples(index=False, name=None))
        return _table("DataFrame", "table", rows)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise stop("P001", type(source).__name__, "source", "Pass a path, hub:owner/name, a table or a list of rows.")
    return _table(type(source).__name__, "table", source)


def _table(name: str, kind: str, rows: Iterable[Any]) -> Source:
    return Source(name, kind, (Row(k, plain(row)) for k, row in enumerate(rows, 1)), Findings(name))


def plain(value: Any) -> Any:
    """A value of pandas or NumPy as plain Python: arrays become lists, missing values None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return plain(value.tolist())
    if isinstance(value, (str, int, float)):
        return None if value != value else value
    return None if value is None or type(value).__name__ in ("NAType", "NaTType") else value


def _hub(name: str) -> Source:
    name, _, part = name.partition("@")
    config, _, split = part.rpartition("/")
    try:
        from datasets import load_dataset

        rows = load_dataset(name, config or None, split=split or "train", streaming=True)
        return Source(f"hub:{name}", "hub", _checked(_table(name, "hub", rows).rows, name), Findings(f"hub:{name}"))
    except Exception as error:  # the library raises dozens of kinds, from no network to an unknown split
        fix = "Check the name, the split (hub:owner/name@split or @config/split) and the network."
        raise stop("P001", f"{type(error).__name__}: {error}", f"hub:{name}", fix) from error


def _file(path: Path) -> Source:
    try:
        if not path.is_file():
            raise stop("P001", "a folder" if path.is_dir() else "no file", str(path))
        file: Any = path.open("rb", _HEAD)
        findings = Findings(str(path))
        if file.peek(2)[:2] == b"\x1f\x8b":
            file = io.BufferedReader(gzip.GzipFile(fileobj=file), _HEAD)  # type: ignore[arg-type]
            if path.suffix != ".gz":
                findings.add("P006", 1, got=f"gzip named {path.suffix or path.name}")
        head = file.peek(_HEAD)[:_HEAD]
        suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
        if head[:4] == b"PAR1":
            return Source(str(path), "parquet", _checked(_parquet(file), str(path), file), findings)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (b"\0" in head[:2] and suffix != ".parquet"):
            raise stop("P003", head[:8].hex(" "), f"{path}:1")
        if suffix == ".parquet":
            raise stop("P008", f"no parquet file: {head[:8]!r}", str(path))
        return _text(path, file, head, suffix, findings)
    except (OSError, EOFError, zlib.error) as error:
        raise stop("P008", f"{type(error).__name__}: {error}", str(path)) from error


def _checked(rows: Iterator[Row], where: str, file: Any = None) -> Iterator[Row]:
    """The same rows; turns what libraries raise on a damaged file into one readable error, and closes the file."""
    try:
        yield from rows
    except (WorkbenchError, MemoryError):
        raise
    except Exception as error:
        raise stop("P008", f"{type(error).__name__}: {error}", where) from error
    finally:
        if file:
            file.close()


def _text(path: Path, file: Any, head: bytes, suffix: str, findings: Findings) -> Source:
    if head.startswith(b"\xef\xbb\xbf"):
        file.read(3)
        head = head[3:]
        findings.add("P004", 1, got="EF BB BF")
    start = head.lstrip()[:1]
    name, lines = str(path), _lines(file, head, findings)
    if start in (b"[", b"{") or suffix not in (".csv", ".tsv", ".txt", ".tab"):
        first = head.lstrip().split(b"\n", 1)
        rest = first[1].strip() if len(first) > 1 else b""
        one = _is_json(first[0])
        if (start == b"[" and (not one or not rest)) or (start == b"{" and suffix == ".json" and not one):
            if suffix in (".jsonl", ".ndjson", ".csv", ".tsv"):
                findings.add("P006", 1, got=f"a JSON array named {suffix}")
            return Source(name, "json", _checked(_json(file, name), name, file), findings)
        if start == b"{" and suffix in (".csv", ".tsv"):
            findings.add("P006", 1, got=f"JSON lines named {suffix}")
        return Source(name, "jsonl", _checked(_jsonl(lines), name, file), findings)
    blank, header = next(((k, line) for k, line in enumerate(lines) if line.strip()), (0, b""))
    usual = "\t" if suffix in (".tsv", ".tab") else ","
    columns = {d: header.count(d.encode()) for d in (usual, ",", "\t", ";", "|")}
    delimiter = usual if columns[usual] else max(columns, key=columns.__getitem__)
    if delimiter != usual:
        findings.add("P006", 1, got=f"{delimiter!r} between the columns of a {suffix} file")
    rows = _checked(_csv(header, lines, delimiter, name, blank + 1), name, file)
    return Source(name, "csv", rows, findings)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
        return True
    except (ValueError, RecursionError):
        return False


def _lines(file: Any, head: bytes, findings: Findings) -> Iterator[bytes]:
    """Lines with their line breaks: LF only, since JSON text may contain U+2028; CR in a file without LF."""
    if b"\r" in head and b"\n" not in head:
        findings.add("P005", 1, got="CR alone")
        file = file.read().replace(b"\r", b"\n").splitlines(keepends=True)
    else:
        at = head.find(b"\n")
        if head[at - 1 : at] == b"\r":
            findings.add("P005", 1, got="CRLF")
    yield from file


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        twice = Counter(key for key, _ in items).most_common(1)[0][0]
        raise Refusal("P105", twice, twice)
    return made


def _no_number(name: str) -> None:
    raise Refusal("P104", "", name)


_strict = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number).decode


def _parsed(text: str, cut: bool = False) -> Any:
    """The JSON value. `cut`: the text is the end of the file, so it may have been cut off. Raises Refusal."""
    try:
        return _strict(text)
    except json.JSONDecodeError as error:
        ended = cut and (error.pos >= len(text.rstrip()) or error.msg.startswith(("Unterminated", "Invalid \\u")))
        near = text[max(0, error.pos - 20) : error.pos + 20]
        hint = f"{error.msg.lower().removesuffix(' at')} at character {error.pos + 1}: {near}"
        raise Refusal("P102" if ended else "P101", "", hint) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Refusal("P101", "", f"{str(error)[:50]}: {text[:20]}") from None


def _jsonl(lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        raw = line.rstrip(b"\r\n")
        if not raw.strip():
            continue
        try:
            yield Row(number, _parsed(raw.decode("utf-8"), cut=line == raw), raw)
        except UnicodeDecodeError as error:
            yield Row(number, None, raw, Refusal("P103", "", raw[max(0, error.start - 20) : error.end + 20]))
        except Refusal as refusal:
            yield Row(number, None, raw, refusal)


def _json(file: Any, name: str) -> Iterator[Row]:
    """The objects of an array, or objects that span several lines each."""
    data = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise stop("P103", data[error.start : error.end], f"{name}:{line}") from None
    del data
    decode, at, line, last = json.JSONDecoder().raw_decode, 0, 1, 0
    array = text.lstrip()[:1] == "["
    at = text.index("[") + 1 if array else 0
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        line, last = line + text.count("\n", last, at), at
        if array and text[at : at + 1] == "]":
            array, at = False, at + 1
            continue
        if at >= len(text):
            break
        try:
            end = decode(text, at)[1]
        except (ValueError, RecursionError):
            end = len(text)  # nobody can tell where a broken value ends
        raw = text[at:end]
        try:
            yield Row(line, _parsed(raw, cut=end == len(text)), raw.encode())
        except Refusal as refusal:
            yield Row(line, None, raw.rstrip().encode(), refusal)
        at = end


def _csv(header: bytes, lines: Iterator[bytes], delimiter: str, name: str, number: int) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        names = next(csv.reader([header.decode("utf-8")], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise stop("P103" if isinstance(error, UnicodeDecodeError) else "P008", header, f"{name}:{number}") from error
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise stop("P105", twice, f"{name}:{number}", "Rename one of the columns.")
    reader = csv.reader((x.decode("utf-8", "surrogateescape") for x in lines), delimiter=delimiter, strict=True)
    while True:
        line, cells = number + reader.line_num + 1, []
        problem: Refusal | None = None
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem = Refusal("P111", "", error)
        text = "".join(cells)
        if not problem and len(cells) < 2 and not text.strip():  # an empty line
            continue
        if has_surrogate(text):
            problem = Refusal("P103", "", cells)
        elif not problem and len(cells) != len(names):
            problem = Refusal("P111", "", f"{len(cells)} cells of {len(names)}: {', '.join(cells)}")
        yield Row(line, dict(zip(names, cells, strict=False)), problem=problem)


def _parquet(file: Any) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, plain(value))
