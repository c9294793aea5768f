"""Does a task share wording with a public set? `python research/prompt_overlap.py TASK FILE [--words 8]`.

It looks for runs of eight words (letters and digits, in lower case) that occur in prompts of both, and prints them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

from dpo_workbench.pairs.sources import open_source
from dpo_workbench.tasks.builtin import load_task


def runs(texts: Iterable[str], n: int) -> set[tuple[str, ...]]:
    """All runs of `n` words in the texts."""
    found: set[tuple[str, ...]] = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        found.update(zip(*(words[k:] for k in range(n)), strict=False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("file", help="rows with a column `prompt`")
    parser.add_argument("--words", type=int, default=8)
    args = parser.parse_args()
    public = runs((row.value["prompt"] for row in open_source(args.file).rows), args.words)
    for split, examples in load_task(args.task).splits.items():
        own = runs((example.prompt_as_text for example in examples), args.words)
        shared = sorted(" ".join(run) for run in own & public)
        print(
            f"{split}: {len(own)} runs of {args.words} words, {len(shared)} of them among the {len(public)} of the file"
        )
        print("".join(f"  {run}\n" for run in shared[:20]), end="")


if __name__ == "__main__":
    main()
