"""Rows of files, tables and Hub data sets, each with its line number and what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.pairs.codes import Refusal, stop


@dataclass
class Row:
    """One row of a source."""

    line: int  # physical line of JSONL and CSV files, else the number of the row; from 1
    value: Any  # what was read; the text of the row if there is a problem
    problem: Refusal | None = None


@dataclass
class Source:
    """Where rows come from: iterate over `rows` once."""

    name: str
    kind: str  # jsonl, json, csv, parquet, table or hub
    rows: Iterator[Row]


def open_source(source: Any) -> Source:
    """Rows of a path, `hub:owner/name`, a pandas DataFrame, a `datasets` object or dicts. Raises WorkbenchError."""
    if isinstance(source, (str, Path)):
        return _hub(str(source)[4:]) if str(source).startswith("hub:") else _file(Path(source))
    is_pandas = hasattr(source, "to_dict") and hasattr(source, "columns")
    rows = source.to_dict("records") if is_pandas else source
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise stop("P001", type(source).__name__, "source", "Pass a path, hub:owner/name, a table or a list of rows.")
    return Source(type(source).__name__, "table", _numbered(rows))


def _numbered(values: Iterable[Any]) -> Iterator[Row]:
    return (Row(number, _plain(value)) for number, value in enumerate(values, 1))


def _plain(value: Any) -> Any:
    """A value of pandas or NumPy as plain Python: arrays become lists, missing values None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return _plain(value.tolist())
    is_nan = isinstance(value, float) and value != value
    return None if is_nan or type(value).__name__ in ("NAType", "NaTType") else value


def _hub(name: str) -> Source:
    name, _, part = name.partition("@")
    config, _, split = part.rpartition("/")
    try:
        from datasets import load_dataset

        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises dozens of kinds, from no network to an unknown split
        fix = "Check the name, the split (hub:owner/name@split or @config/split) and the network."
        raise stop("P001", f"{type(error).__name__}: {error}", f"hub:{name}", fix) from error
    return Source(f"hub:{name}", "hub", _numbered(rows))


def _file(path: Path) -> Source:
    """The content decides how a file is read; its name only tells CSV from JSON where the first sign does not."""
    name = str(path)
    try:
        if not path.is_file():
            fix = "Name a file in it. If `save_to_disk` wrote it, pass datasets.load_from_disk(folder)."
            raise stop("P001", "a folder", name, fix) if path.is_dir() else stop("P001", "no file", name)
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise stop("P008", f"{type(error).__name__}: {error}", name) from error
    if data.startswith((b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\3\4")):  # bzip2, xz, zstd, zip
        raise stop("P001", "a compressed file", name, "Unpack it first; only .gz is unpacked while reading.")
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    if suffix == ".parquet" or data[:4] == b"PAR1":
        return Source(name, "parquet", _numbered(_parquet(data, name)))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2]:
        raise stop("P003", data[:8].hex(" "), f"{name}:1")
    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    start, first = data.lstrip()[:1], data.lstrip().split(b"\n", 1)[0]
    if start not in (b"[", b"{") and suffix in (".csv", ".tsv", ".txt", ".tab"):
        return Source(name, "csv", _csv(data, name))
    if start == b"[" or (suffix == ".json" and not first.rstrip().endswith(b"}")):  # an object of several lines
        return Source(name, "json", (Row(number, value) for number, value in enumerate(_json(data, name), 1)))
    return Source(name, "jsonl", _jsonl(data))


def _parquet(data: bytes, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise stop("P008", f"{type(error).__name__}: {error}", name) from error


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        twice = Counter(key for key, _ in items).most_common(1)[0][0]
        raise Refusal("P105", twice, twice)
    return made


def _no_number(name: str) -> None:
    raise Refusal("P104", "", name)


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)  # its hooks raise Refusal


def _parsed(data: bytes, cut: bool) -> Any:
    """The JSON value. `cut`: the text is the end of the file, so it may have been cut off. Raises Refusal."""
    try:
        return STRICT_JSON.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal("P103", "", data[max(0, error.start - 20) : error.end + 20]) from None
    except json.JSONDecodeError as error:
        text, at = error.doc, error.pos
        ended = cut and (at >= len(text.rstrip()) or error.msg.startswith(("Unterminated", "Invalid \\u")))
        hint = f"{error.msg.lower().removesuffix(' at')} at character {at + 1}: {text[max(0, at - 20) : at + 20]}"
        raise Refusal("P102" if ended else "P101", "", hint) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Refusal("P101", "", f"{str(error)[:50]}: {data[:20].decode()}") from None


def _jsonl(data: bytes) -> Iterator[Row]:
    """Lines end in LF only, because JSON text may contain U+2028."""
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Row(number, _parsed(line, cut=number == len(lines)))
            except Refusal as refusal:
                yield Row(number, line, refusal)


def _json(data: bytes, name: str) -> list[Any]:
    """The objects of an array, or one object."""
    try:
        values = _parsed(data, cut=True)
    except Refusal as refusal:
        raise stop(refusal.code, refusal.got, name, refusal.fix) from None
    return values if isinstance(values, list) else [values]


def _csv(data: bytes, name: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise stop("P103", data[max(0, error.start - 20) : error.end + 20], f"{name}:{line}") from None
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",\t;|", key=header.count)
    spaced = 0 < header.count(delimiter) == header.count(delimiter + " ")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if not columns:
                raise stop("P008", error, f"{name}:{line}") from error
            yield Row(line, {}, Refusal("P111", "", error))
            continue
        if cells is None:
            return
        if len(cells) < 2 and not "".join(cells).strip():  # an empty line
            continue
        if columns:
            wrong = Refusal("P111", "", f"{len(cells)} cells of {len(columns)}: {', '.join(cells)}")
            yield Row(line, dict(zip(columns, cells, strict=False)), None if len(cells) == len(columns) else wrong)
        elif len(set(cells)) < len(cells):
            raise stop("P105", Counter(cells).most_common(1)[0][0], f"{name}:{line}", "Rename one of the columns.")
        columns = columns or cells
