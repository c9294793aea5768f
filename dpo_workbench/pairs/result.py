"""What `read_pairs` gives: pairs, findings and counts, and files of what was refused or mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_bytes
from dpo_workbench.pairs.checks import CODES, Annotator, Finding
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.pairs.sources import Row, open_source

if TYPE_CHECKING:
    import pandas


@dataclass
class Read:
    """What was read. Rows are counted once each: `rows == kept + refused + merged`."""

    source: str
    layout: str
    rows: int
    kept: int
    refused: int
    merged: int  # exact copies of a row before
    findings: list[Finding]  # the first thousand of each code
    counts: dict[str, int]  # of all findings, by code
    found: list[Pair] = field(repr=False)
    refused_rows: list[Row] = field(repr=False)
    merged_rows: set[int] = field(repr=False)  # their numbers
    header: bytes = field(default=b"", repr=False)  # of a CSV file
    annotators: list[Annotator] = field(default_factory=list, repr=False)  # whose labels were kept, most labels first
    licence: str = ""  # of a well-known set, as its card names it

    @property
    def pairs(self) -> Pairs:
        """The pairs of the rows that were kept.

        Raises:
            WorkbenchError: no row was kept; names the first findings.
        """
        return Pairs(self.found) if self.found else self._stop("A file must have a row that can be used.")

    def strict(self) -> Pairs:
        """The pairs, if no row was refused.

        Raises:
            WorkbenchError: rows were refused; names the first findings.
        """
        return self.pairs if not self.refused else self._stop("All rows must be usable.")

    def _stop(self, must: str) -> Pairs:
        errors = [f for f in self.findings if f.severity == "error"]
        raise WorkbenchError(
            f"{must} Got {self.refused} refused of {self.rows}: {' '.join(map(str, errors[:3]))} Mend or drop the "
            f"{'row' if self.refused == 1 else 'rows'}; `dpo-workbench check {self.source}` shows all."
        )

    def quarantine(self, path: str | Path) -> Path:
        """Write the refused rows, byte for byte as they were (a CSV file's behind its header).

        Raises:
            WorkbenchError: `path` is the source.
        """
        _must_differ(path, self.source)
        lines = [self.header] if self.header else []
        write_bytes(Path(path), b"".join(line + b"\n" for line in [*lines, *(r.original() for r in self.refused_rows)]))
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """Counts and findings as plain values for JSON."""
        names = ("source", "layout", "rows", "kept", "refused", "merged", "counts")
        return {
            **{name: getattr(self, name) for name in names},
            "pairs": len(self.found),
            "annotators": [person.to_dict() for person in self.annotators],
            "findings": [asdict(f) for f in self.findings],
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """The findings as a table, one a row."""
        import pandas

        names = ("code", "severity", "source", "line", "field", "excerpt", "fix")
        return pandas.DataFrame([asdict(f) for f in self.findings], columns=names)

    def __repr__(self) -> str:
        lines = [f"{self.source}: layout {self.layout}"]
        if self.licence:
            lines.append(f"licence: {self.licence}; read its card")
        for code, count in sorted(self.counts.items(), key=lambda item: (CODES[item[0]][0] != "error", item[0])):
            severity, must, _ = CODES[code]
            lines.append(f"{code} {severity}, {count} time{'s' if count > 1 else ''}: {must}")
            first = [f for f in self.findings if f.code == code]
            for f in first[:3]:
                where = f"{self.source}:{f.line}" if f.line else "the whole set"
                lines.append(f"    {where}{f' `{f.field}`' if f.field else ''}{f': {f.excerpt}' if f.excerpt else ''}")
            if count > 3:
                more = ", ".join(str(f.line) for f in first[3:13])
                lines.append(f"    and {count - 3} more: {more}{', ...' if count > 13 else ''}")
            lines.append(f"    fix: {' '.join(dict.fromkeys(f.fix for f in first[:3]))}")
        lines.append(
            f"{self.rows} rows read = {self.kept} kept + {self.refused} refused + {self.merged} merged; "
            f"{len(self.found)} pairs"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def fix_file(source: str | Path, read: Read, out: str | Path) -> list[str]:
    """Write a text file anew with what can be mended without loss; all other bytes stay, also of refused rows.

    The byte order mark goes, lines end in LF, ids lose spaces at their ends, exact copies of rows go.

    Raises:
        WorkbenchError: the source is no JSONL, CSV or TSV file, or `out` is the source.
    """
    _must_differ(out, source)
    opened = open_source(source)
    if opened.kind not in ("jsonl", "csv"):
        raise WorkbenchError(
            f"Only JSONL, CSV and TSV files can be mended as text. Got {opened.kind} ({source}). Save the pairs "
            "instead: read_pairs(...).pairs.save(...)."
        )
    refused, trimmed = {row.number for row in read.refused_rows}, 0
    lines = [opened.header] if opened.header else []
    for number, row in enumerate(opened.rows, 1):
        if number in read.merged_rows:
            continue
        given = row.value.get("id") if opened.kind == "jsonl" and number not in refused else None
        if isinstance(given, str) and given != given.strip():
            row.value["id"], row.raw, trimmed = given.strip(), None, trimmed + 1
        lines.append(row.original())
    write_bytes(Path(out), b"".join(line + b"\n" for line in lines))
    done = {"byte order mark": "P004" in read.counts, "line ends": "P005" in read.counts}
    done |= {f"ids trimmed: {trimmed}": bool(trimmed), f"copies dropped: {read.merged}": bool(read.merged)}
    return [what for what, was in done.items() if was]


def _must_differ(path: str | Path, source: str | Path) -> None:
    if Path(path).resolve() == Path(source).resolve():
        raise WorkbenchError(f"The source must stay as it is. Got its own name, {path}, to write to. Give another.")
