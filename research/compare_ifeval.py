"""The rules for IFEval here and those of the package `if-verifiable`: benchmarks/results/ifeval_rules.json.

    pip install --target RULES --no-deps if-verifiable langdetect six nltk immutabledict
    python research/compare_ifeval.py FILE ANSWERS.jsonl --rules RULES      # rows with key (or id), prompt, answer
    python research/compare_ifeval.py FILE --made-up 10 --rules RULES       # 10 made-up answers for each prompt

FILE is IFEval's public JSONL, or the folder that holds it. For each instruction of each answer, both sets of rules say
whether it is met, strictly and loosely. Each disagreement is listed with its reason; those without one come first.

Two of the package's counters need data that is downloaded at run time (NLTK's `punkt`): sentences, and words in
capitals. They are replaced by the counters of this project, so for these two instructions only the limits are compared.
The request to be repeated, which some copies of the data lack, is taken from the prompt for both.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from generators.ifeval_answers import made_up

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.pairs.sources import open_source
from dpo_workbench.tasks import constraints
from dpo_workbench.tasks.constraints import Constraint, met, met_loosely
from dpo_workbench.tasks.instructions import ifeval
from dpo_workbench.tasks.task import Example

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "ifeval_rules.json"
OWN_COUNTERS = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
# (Instruction, where alone it is met) -> the reason, and a pattern in the answer that shows it. Braces take parameters
# of the constraint.
REASONS: dict[tuple[str, str], tuple[str, str]] = {
    ("change_case:english_capital", "here"): ("there langdetect must also call the text English", ""),
    ("change_case:english_lowercase", "here"): ("there langdetect must also call the text English", ""),
    ("detectable_content:number_placeholders", "there"): ("brackets without text count there", r"\[\s*\]"),
    ("detectable_content:postscript", "there"): (
        "here text must follow the marker, and the marker must not be part of a word",
        r"p\.\s?s\.?\W*$|\S(?<![*\"(])p\.\s?",
    ),
    ("detectable_format:constrained_response", "here"): ("capitals do not matter here", r"my answer is"),
    ("detectable_format:constrained_response", "there"): (
        "several of the fixed answers are no choice here",
        r"my answer is (?s:.)*my answer is",
    ),
    ("detectable_format:json_format", "there"): (
        "a number or a text alone is no JSON answer here",
        r'^\W*["\d]|^\W*\w+\W*$',
    ),
    ("detectable_format:multiple_sections", "there"): (
        "a heading must start its line here",
        r"[^\s#*_>][^\n]*{heading}\s?\d",
    ),
    ("detectable_format:multiple_sections", "here"): ("capitals do not matter here", r"^[ \t#*_>]*{heading}"),
    ("detectable_format:number_bullet_lists", "both"): (
        "only here are + and • bullets, and only there is a sign without a space one",
        r"^\s*(?:[+•]|\*[^\s*]|-\S)",
    ),
    ("detectable_format:number_highlighted_sections", "there"): (
        "asterisks with a space inside or without a partner make no highlight here",
        r"\*[ \t]|[ \t]\*|\*$",
    ),
    ("detectable_format:number_highlighted_sections", "here"): (
        "there asterisks are paired from the left, whatever their number",
        r"\*\*",
    ),
    ("keywords:existence", "there"): ("a keyword inside a longer word does not count here", r"\w(?:{words})"),
    ("keywords:frequency", "both"): ("a keyword inside a longer word does not count here", r"\w{word}"),
    ("language:response_language", "both"): (
        "short or mixed texts: langdetect guesses, and takes a part without letters for any language",
        "",
    ),
    ("length_constraints:nth_paragraph_first_word", "here"): (
        "there an empty paragraph shifts the count, and asterisks belong to the word",
        r"\n\s*\n\s*\n|\n[ \t]+\n|\*",
    ),
    ("length_constraints:nth_paragraph_first_word", "there"): (
        "there a line with spaces does not separate paragraphs",
        r"\n[ \t]+\n",
    ),
    ("length_constraints:number_paragraphs", "both"): ("two marks in a row are not met there", r"\*\*\*\s*\*\*\*"),
    ("length_constraints:number_words", "both"): ("a word with an apostrophe is one word here", r"\w['’]\w"),
    ("punctuation:no_comma", "there"): ("commas of other scripts count here", "[，、،]"),
    ("startend:end_checker", "here"): (
        "asterisks and quotation marks after the phrase are skipped here",
        r"[*'”’\"]\W*$",
    ),
    ("startend:quotation", "here"): ("curly quotation marks count here", "[“”]"),
}


def package_rules(folder: Path) -> Callable[[str, dict[str, Any], str], tuple[bool, bool]]:
    """`rule(instruction, kwargs, answer)` of the package: met strictly, met loosely."""
    sys.path.insert(0, str(folder))
    import langdetect
    import nltk
    from if_verifiable.common import get_loose_transformations
    from if_verifiable.ifeval import instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    langdetect.DetectorFactory.seed = 0
    instructions_util.count_sentences = constraints.sentences
    nltk.word_tokenize = lambda text: re.findall(r"\w[\w'’-]*", text)

    def rule(instruction: str, kwargs: dict[str, Any], answer: str) -> tuple[bool, bool]:
        checker = INSTRUCTION_DICT[instruction](instruction)
        checker.build_description(**kwargs)
        texts = [text for text in get_loose_transformations(answer) if text.strip()]
        return bool(checker.check_following(answer)), any(bool(checker.check_following(text)) for text in texts)

    return rule


def answers_from(source: str, examples: list[Example]) -> Iterator[tuple[Example, str]]:
    """Recorded answers with their prompts, found by key or by the prompt's text."""
    by_name = {key: example for example in examples for key in (example.id, example.prompt)}
    for row in open_source(source).rows:
        names = (f"ifeval-{row.value.get('key')}", str(row.value.get("id")), row.value.get("prompt"))
        found = next((by_name[name] for name in names if name in by_name), None)
        if found is None:
            raise SystemExit(f"Each answer must belong to a prompt of the file. Got {names} (line {row.line}).")
        if row.value["answer"].strip():  # an empty answer is a failure before any rule is asked
            yield found, row.value["answer"]


def compare(
    rule: Callable[..., Any], rows: dict[str, dict[str, Any]], answers: Iterator[tuple[Example, str]]
) -> dict[str, Any]:
    """Agreements by instruction, and all disagreements."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    differ = []
    for example, answer in answers:
        row = rows[example.id]
        for name, kwargs, constraint in zip(
            row["instruction_id_list"], row["kwargs"], example.extra["constraints"], strict=True
        ):
            given = {k: v for k, v in kwargs.items() if v is not None}
            if constraint["kind"] == "repeats_request":
                given["prompt_to_repeat"] = constraint["request"]
            ours, theirs = (met(constraint, answer), met_loosely(constraint, answer)), rule(name, given, answer)
            counts[name].update(
                answers=1, met_here=ours[1], met_there=theirs[1],
                agree_strict=ours[0] == theirs[0], agree_loose=ours[1] == theirs[1],
            )  # fmt: skip
            if ours != theirs:
                where = "here" if sum(ours) > sum(theirs) else "there"
                differ.append({
                    "id": example.id, "instruction": name, "here": ours, "there": theirs,
                    "reason": reason(name, constraint, answer, where), "constraint": constraint, "answer": answer[:300],
                })  # fmt: skip
    differ.sort(key=lambda row: (row["reason"] is not None, row["instruction"]))
    return {"instructions": {name: dict(counts[name]) for name in sorted(counts)}, "disagreements": differ}


def reason(name: str, constraint: Constraint, answer: str, where: str) -> str | None:
    """Why the two rules differ on this answer, if that is known."""
    why, pattern = REASONS.get((name, where)) or REASONS.get((name, "both")) or (None, "")
    for key, value in constraint.items():
        text = "|".join(map(re.escape, value)) if isinstance(value, list) else re.escape(str(value))
        pattern = pattern.replace(f"{{{key}}}", text)
    return why if re.search(pattern, answer, re.MULTILINE | re.IGNORECASE) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("answers", nargs="?")
    parser.add_argument("--made-up", type=int, default=0, metavar="N")
    parser.add_argument("--rules", type=Path, required=True, help="the folder with the package")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    file = next(args.file.glob("*.jsonl")) if args.file.is_dir() else args.file
    examples = ifeval(file).test.examples
    rows = {f"ifeval-{row.value['key']}": row.value for row in open_source(file).rows}
    answers = list(answers_from(args.answers, examples) if args.answers else made_up(examples, args.made_up))
    found = compare(package_rules(args.rules), rows, iter(answers))
    total = sum((Counter(count) for count in found["instructions"].values()), Counter())
    for name, count in {**found["instructions"], "all": total}.items():
        note = " (own counter)" if name in OWN_COUNTERS else ""
        print(f"{name:50} {count['agree_strict']:5} / {count['agree_loose']:5} of {count['answers']:5} agree{note}")
    reasons = Counter((row["instruction"], row["reason"]) for row in found["disagreements"])
    for (name, why), n in sorted(reasons.items(), key=lambda item: (item[0][1] is not None, item[0][0])):
        print(f"{n:5} {name}: {why or 'NOT EXPLAINED'}")
    facts = {"machine": describe(), "date": date.today().isoformat(), "answers": len(answers)}
    given = "ANSWERS.jsonl" if args.answers else f"--made-up {args.made_up}"
    command = f"python research/compare_ifeval.py FILE {given} --rules RULES"
    write_json(args.out, {**facts, "command": command, "total": dict(total), **found})


if __name__ == "__main__":
    main()
