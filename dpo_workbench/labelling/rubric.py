"""`Rubric`: the question that raters answer and the criteria they consider, read from a small YAML file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible

SHOW_AS = ("text", "code", "json", "sql")


@dataclass(frozen=True)
class Rubric:
    """A question, and the criteria that raters consider, as text."""

    name: str
    question: str
    criteria: str = ""
    show_as: str = "text"  # how answers are displayed, one of SHOW_AS

    @property
    def version(self) -> str:
        """The name and a hash of the wording. It is stored with every label: labels under an older wording differ."""
        content = f"{self.name}\0{self.question}\0{self.criteria}".encode("utf-8", "surrogatepass")
        return f"{self.name}-{hashlib.blake2b(content, digest_size=5).hexdigest()}"

    @classmethod
    def load(cls, source: str | Path | Rubric | None) -> Rubric:
        """A rubric from a YAML file, or the template of a built-in task by the task's name. None asks one question.

        Raises:
            WorkbenchError: there is no such file or template, it is not YAML, or a part is missing or unknown.
        """
        if isinstance(source, Rubric):
            return source
        if source is None:
            return cls("plain", "Which answer is better?")
        templates = {path.stem: path for path in (data_folder() / "rubrics").glob("*.yaml")}
        path = Path(source) if Path(source).is_file() else templates.get(str(source))
        if path is None:
            names = ", ".join(sorted(templates))
            raise WorkbenchError(f"`rubric` must be a YAML file or a template ({names}). Got {str(source)!r}.")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise WorkbenchError(f"A rubric must be YAML. Got {' '.join(str(error).split())} ({path}).") from error
        if problem := _problem(content):
            raise WorkbenchError(
                "A rubric must have a `question`, and each of its `criteria` a `name` and a `description`. "
                f"{path}: {problem}. Start from a template in data/rubrics."
            )
        criteria = "\n".join(map(_text, content.get("criteria") or []))
        name = str(content.get("name") or path.stem)
        return cls(name, content["question"], criteria, content.get("show_as", "text"))

    def __repr__(self) -> str:
        return visible(f"Rubric {self.version}: {self.question}\n{self.criteria}".rstrip())


def _text(criterion: dict[str, Any]) -> str:
    lines = [f"{criterion['name']}: {criterion['description']}"]
    lines += [f"  {grade}: {meaning}" for grade, meaning in (criterion.get("anchors") or {}).items()]
    lines += [f"  For example: {example}" for example in criterion.get("examples") or ()]
    return "\n".join(lines)


def _problem(content: Any) -> str | None:
    """What is wrong with the content of a rubric file; None if nothing is."""
    if not isinstance(content, dict) or not isinstance(content.get("question"), str):
        return "it has no `question`"
    if unknown := sorted(map(str, set(content) - {"name", "question", "criteria", "show_as"})):
        return f"it has an unknown part {unknown[0]!r}"
    for number, row in enumerate(content.get("criteria") or [], 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("name", "description")):
            return f"criterion {number} has no name or no description"
        if not isinstance(row.get("anchors") or {}, dict):
            return f"`anchors` of {row['name']!r} must map each grade to its meaning"
    if content.get("show_as", "text") not in SHOW_AS:
        return f"`show_as` must be one of {', '.join(SHOW_AS)}, not {content['show_as']!r}"
    return None
