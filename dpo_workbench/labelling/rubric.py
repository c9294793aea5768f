"""`Rubric`: the question that raters answer and the criteria they consider, read from a small YAML file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible

SHOW_AS = ("text", "code")


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
        """A rubric from a YAML file, or the template of a built-in task by the task's name. None asks one question."""
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
            content = {"name": path.stem} | yaml.safe_load(path.read_text(encoding="utf-8"))
            if not all(isinstance(part, str) for part in content.values()):
                raise TypeError("all values must be text")
            rubric = cls(**content | {"criteria": content.get("criteria", "").strip()})
            if rubric.show_as not in SHOW_AS:
                raise TypeError(f"`show_as` is {rubric.show_as!r}")
        except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
            raise WorkbenchError(
                "A rubric must be YAML with a `question`, and may have `name`, `criteria` (several lines follow "
                f"`criteria: |`) and `show_as` ({', '.join(SHOW_AS)}). Got: {' '.join(str(error).split())} ({path})."
            ) from error
        return rubric

    def __repr__(self) -> str:
        return visible(f"Rubric {self.version}: {self.question}\n{self.criteria}".rstrip())
