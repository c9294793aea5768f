"""`Rubric`: the question that raters answer and the criteria they consider, read from a text file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible


@dataclass(frozen=True)
class Rubric:
    """A question, and the criteria that raters consider, as text."""

    name: str
    question: str
    criteria: str = ""

    @property
    def version(self) -> str:
        """The name and a hash of the wording. It is stored with every label: labels under an older wording differ."""
        content = f"{self.name}\0{self.question}\0{self.criteria}".encode("utf-8", "surrogatepass")
        return f"{self.name}-{hashlib.blake2b(content, digest_size=5).hexdigest()}"

    @classmethod
    def load(cls, source: str | Path | Rubric | None) -> Rubric:
        """A rubric from a text file: the question in the first line, and then the criteria, if any.

        The name of a built-in task gives the template for it. None asks one plain question.
        """
        if isinstance(source, Rubric):
            return source
        if source is None:
            return cls("plain", "Which answer is better?")
        templates = {path.stem: path for path in (data_folder() / "rubrics").glob("*.txt")}
        path = Path(source) if Path(source).is_file() else templates.get(str(source))
        if path is None:
            names = ", ".join(sorted(templates))
            raise WorkbenchError(f"`rubric` must be a text file or a template ({names}). Got {str(source)!r}.")
        question, _, criteria = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")
        if not question:
            raise WorkbenchError(f"The first line of a rubric must be the question. Got an empty file: {path}.")
        return cls(path.stem, question.strip(), criteria.strip())

    def __repr__(self) -> str:
        return visible(f"Rubric {self.version}: {self.question}\n{self.criteria}".rstrip())
