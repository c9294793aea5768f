"""`Rubric`: what raters look at, as a small YAML file whose version goes into every label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError


@dataclass(frozen=True)
class Criterion:
    """One thing to look at. `anchors`: what each grade means, by its name."""

    name: str
    description: str
    anchors: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rubric:
    """A question, and criteria that are compared one by one. `version` is a hash of what it says."""

    name: str
    question: str
    criteria: tuple[Criterion, ...] = ()
    show_as: str = "text"  # how answers are shown: text, code, json or sql

    @property
    def version(self) -> str:
        text = repr((self.name, self.question, [_flat(c) for c in self.criteria]))
        return f"{self.name}-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=5).hexdigest()}"

    @classmethod
    def load(cls, source: str | Path | Rubric | None) -> Rubric:
        """A rubric from a YAML file, or a template by the name of a built-in task; None: a plain question.

        Raises:
            WorkbenchError: no such file or template, no YAML, or a part is missing or unknown.
        """
        if isinstance(source, Rubric):
            return source
        if source is None:
            return cls("plain", "Which answer is better?")
        template = data_folder() / "rubrics" / f"{source}.yaml"
        path = Path(source) if Path(source).is_file() else template
        if not path.is_file():
            have = sorted(p.stem for p in (data_folder() / "rubrics").glob("*.yaml"))
            raise WorkbenchError(
                f"`rubric` must be a YAML file or a template. Got {str(source)!r}. Templates: {', '.join(have)}."
            )
        import yaml

        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise WorkbenchError(f"A rubric must be YAML. Got {' '.join(str(error).split())} ({path}).") from error
        return cls._from(read, path)

    @classmethod
    def _from(cls, read: Any, path: Path) -> Rubric:
        def wrong(what: str) -> WorkbenchError:
            return WorkbenchError(
                f"A rubric must have `question` and `criteria`, each with `name` and `description`. Got {what} "
                f"({path}). Start from a template of data/rubrics."
            )

        if not isinstance(read, dict) or not isinstance(read.get("question"), str):
            raise wrong("no `question`")
        if unknown := set(read) - {"name", "question", "criteria", "show_as"}:
            raise wrong(f"an unknown part {sorted(map(str, unknown))[0]!r}")
        criteria = []
        for number, row in enumerate(read.get("criteria") or [], 1):
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("name", "description")):
                raise wrong(f"criterion {number} without name or description")
            anchors = row.get("anchors") or {}
            if not isinstance(anchors, dict):
                raise wrong(f"`anchors` of {row['name']!r} that are no list of grade: meaning")
            examples = tuple(map(str, row.get("examples") or ()))
            criteria.append(
                Criterion(row["name"], row["description"], {str(k): str(v) for k, v in anchors.items()}, examples)
            )
        names = [c.name.casefold() for c in criteria]
        if len(set(names)) < len(names):
            raise wrong("a criterion name twice")
        shown = read.get("show_as", "text")
        if shown not in ("text", "code", "json", "sql"):
            raise wrong(f"`show_as: {shown}`, which is none of text, code, json, sql")
        return cls(str(read.get("name") or path.stem), read["question"], tuple(criteria), shown)

    def __repr__(self) -> str:
        lines = [f"Rubric {self.version}: {self.question}"]
        for c in self.criteria:
            lines.append(f"  {c.name}: {c.description}")
            lines += [f"    {grade}: {meaning}" for grade, meaning in c.anchors.items()]
            lines += [f"    for example: {example}" for example in c.examples]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def _flat(c: Criterion) -> tuple[Any, ...]:
    return c.name, c.description, sorted(c.anchors.items()), c.examples
