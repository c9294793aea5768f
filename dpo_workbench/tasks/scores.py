"""Ready verifiers for tasks of your own: each call here gives a function `score(example, answer) -> Score`.

    score = scores.number(tolerance=0.01)
    task = Task.from_jsonl("questions.jsonl", prompt="question", reference="answer", score=score)

None of them raises on any answer. What a verifier needs beside the reference it takes from `example.extra`, where
`Task.from_jsonl` keeps the columns of the file. A reference that cannot be one (no number in it, no JSON, tests that
the reference itself does not pass) raises `WorkbenchError`, so that the answer is counted as unscored, never as wrong.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from numbers import Real
from pathlib import Path
from typing import Any

import regex as timed
from snowballstemmer import stemmer

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import PACKAGES, Limits, Problem, extract_code, run_tests
from dpo_workbench.sandbox.sql_runner import Table, run_sql, same_rows
from dpo_workbench.tasks import quantities
from dpo_workbench.tasks.task import Example, Score

ScoreFunction = Callable[[Example, str], Score]


def plain_text(text: str) -> str:
    """Text for comparison: Unicode NFKC, lower case, one space between words, no end punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!")


def exact_match(*, case: bool = False) -> ScoreFunction:
    """1 where the answer is the reference, but for spaces (and upper case, unless `case`); failure `wrong_answer`."""

    def score(example: Example, answer: str) -> Score:
        one, other = (" ".join(t.split()) if case else plain_text(t) for t in (example.reference, answer))
        found = answer.strip()
        return Score(1.0, None, found) if one == other else Score(0.0, "wrong_answer", found, f"not {one[:80]!r}")

    return score


def multiple_choice(choices: str | Sequence[str] = "ABCDE") -> ScoreFunction:
    """1 where the choice that the answer makes is the reference's; failures `no_choice`, `wrong_choice`.

    Read in this order: "answer: B" or "answer is (B)" or `<answer>B` or `\\boxed{B}` (the last one), an answer that is
    a choice alone or begins with one ("B", "(B) because", "B. text"), a single choice in brackets or behind "option",
    "choose" or "so", the last line if it is a choice.
    """
    names = list(choices)
    one = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    patterns = [
        rf"(?:(?<!/)answer\s*(?:is|:|=|>)*\s*|\\boxed\s*\{{\s*(?:\\\w+\s*\{{)?)[(\[*\s]*({one})\b",
        rf"\A\s*[(\[*]*({one})(?:[)\].:*,](?!\s*(?:or|and)\b)|\s*\Z|\s+(?:because|since|as)\b|\n)",
        rf"(?:[(\[]|\b(?:option|choice|choose|pick|select|so|thus|hence|therefore,?)\s+\**)({one})\b(?:[)\]]|(?!\s+(?!or\b)\w))",
        rf"\n\s*\**({one})\**[.)]?\s*\Z",
    ]

    def read(text: str) -> str | None:
        for pattern in patterns:
            found = re.findall(pattern, text, re.IGNORECASE)
            if found and (pattern is not patterns[2] or len({f.casefold() for f in found}) == 1):
                return next(n for n in names if n.casefold() == found[-1].casefold())
        return None

    def score(example: Example, answer: str) -> Score:
        wanted = read(example.reference)
        if wanted is None:
            raise WorkbenchError(f"A reference must name a choice. Got {example.reference[:60]!r} ({example.id}).")
        found = read(answer)
        if found is None:
            return Score(0.0, "no_choice", None, f"names none of {', '.join(names)}")
        return Score(1.0, None, found) if found == wanted else Score(0.0, "wrong_choice", found, f"not {wanted}")

    return score


def regex(pattern: str, *, flags: int = re.IGNORECASE) -> ScoreFunction:
    """1 where the pattern's first group (or the whole match) is the same in answer and reference, the last one counts.

    Failures: `no_match`, `wrong_answer`. A reference that the pattern does not match counts as the wanted text itself.
    The answer's last 100,000 characters are searched. Where that takes more than a second, since the pattern tries too
    many ways to match, the answer counts as unscored.

    Raises:
        WorkbenchError: the pattern is none, or a search took longer.
    """
    try:
        compiled = timed.compile(pattern, flags)
    except timed.error as error:
        raise WorkbenchError(f"A pattern must be a regular expression. Got {pattern!r}: {error}.") from None

    def read(text: str) -> str | None:
        try:
            found = [m[1] if compiled.groups else m[0] for m in compiled.finditer(text[-100_000:], timeout=1.0)]
        except TimeoutError:
            raise WorkbenchError(
                f"A search must end within a second. Got {pattern[:60]!r}, which tries too many ways to match "
                f"{text[:40]!r}. Take repetitions out of repetitions, as in (a|aa)+."
            ) from None
        return plain_text(found[-1] or "") if found else None

    def score(example: Example, answer: str) -> Score:
        wanted, found = read(example.reference), read(answer)
        wanted = plain_text(example.reference) if wanted is None else wanted
        if found is None:
            return Score(0.0, "no_match", None, f"nothing matches {pattern[:60]!r}")
        return Score(1.0, None, found) if found == wanted else Score(0.0, "wrong_answer", found, f"not {wanted!r}")

    return score


def number(*, tolerance: float = 1e-6, unit: str | None = None) -> ScoreFunction:
    """1 where the answer's final number, in the reference's unit, is the reference's within a relative tolerance.

    The final number stands behind the last "answer:" or "####", else in the last `\\boxed{}`, else it is the last
    of the text (`quantities.final_answer`). Units are compared by what they measure: 36 km/h is 10 m/s. Failures:
    `no_answer`, `wrong_unit`, `wrong_value`. A missing or wrong unit with the right number is worth 0.5.

    Args:
        tolerance: relative; absolute where the reference is 0.
        unit: of the references, where they are bare numbers; `""` to ignore units.

    Raises:
        WorkbenchError: a tolerance below 0 or not a number, or a unit that is none.
    """
    if not isinstance(tolerance, Real) or not 0 <= float(tolerance) < math.inf:
        raise WorkbenchError(f"`tolerance` must be a number from 0 upwards. Got {tolerance!r}. Set 0.01 for 1 %.")
    if unit and quantities.read_unit(unit) is None:
        raise WorkbenchError(f"`unit` must be a unit. Got {unit!r}. Write it like m/s or kg m^2, or leave it out.")

    def score(example: Example, answer: str) -> Score:
        wanted = quantities.final_answer(example.reference)
        if wanted is None:
            raise WorkbenchError(f"A reference must hold a number. Got {example.reference[:60]!r} ({example.id}).")
        due = wanted.unit if unit is None else unit
        if unit is None and quantities.read_unit(due) is None:
            due = ""  # "7 apples": a word, no unit
        return judge_quantity(quantities.final_answer(answer), quantities.Quantity(wanted.number, due), tolerance)

    return score


def judge_quantity(found: quantities.Quantity | None, wanted: quantities.Quantity, tolerance: float) -> Score:
    """The score of one quantity against another; see `number`."""
    if found is None:
        return Score(0.0, "no_answer", None, "no number in the answer")
    if not wanted.unit:
        right = quantities.close(found.number, wanted.number, tolerance)
        return Score(1.0, None, found) if right else Score(0.0, "wrong_value", found, f"{found} is not {wanted}")
    here = quantities.convert(found, wanted.unit)
    if here is None:
        right = quantities.close(found.number, wanted.number, tolerance)
        return Score(0.5 if right else 0.0, "wrong_unit", found, f"{found} is not in {wanted.unit}")
    if quantities.close(here, wanted.number, tolerance):
        return Score(1.0, None, found)
    return Score(0.0, "wrong_value", found, f"{found} is not {wanted}")


def json_fields(*, required: Sequence[str] | None = None, invented: bool = False) -> ScoreFunction:
    """F1 over the fields of a JSON object, nested ones by their path and list items as a multiset.

    Text is compared by `plain_text`, numbers by value ("12.50" is 12.5). Failures, in order: `invalid_json`,
    `wrong_schema` (no object, or a top-level field that the reference has not), `missing_field`, `invented_value` (only
    with `invented`: a text or number that the prompt does not have), `wrong_value`.

    Args:
        required: the top-level fields that must be there; default those of the reference.
        invented: look for values that do not stand in the prompt.
    """

    def score(example: Example, answer: str) -> Score:
        try:
            reference = parse_json(example.reference)
        except ValueError as error:
            raise WorkbenchError(f"A reference must be JSON. {error} ({example.id}).") from None
        try:
            found = parse_json(answer)
        except ValueError as error:
            return Score(0.0, "invalid_json", None, str(error))
        if not isinstance(found, dict):
            return Score(0.0, "wrong_schema", found, "the answer is no object")
        want, got = Counter(_leaves(reference)), Counter(_leaves(found))
        value = 2 * sum((want & got).values()) / max(1, sum(want.values()) + sum(got.values()))
        if want == got:
            return Score(1.0, None, found)
        failure, why = _wrong_json(reference, found, example.prompt if invented else None, required)
        return Score(min(value, 0.99), failure, found, why)

    return score


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"key {twice[0]!r} appears twice")
    return dict(pairs)


STRICT_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique_keys)


def parse_json(text: str) -> Any:
    """The JSON value of an answer; one code fence around it, or text before and after an object, is allowed.

    Raises:
        ValueError: no JSON, NaN or Infinity, a key twice, nested too deep.
    """

    text = extract_code(text).strip()
    try:
        start = text.index("{") if "{" in text and not text.startswith(("[", '"')) else 0
        value, end = STRICT_JSON.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if text[end:].strip() and "{" in text[end:]:
        raise ValueError("more than one object")
    return value


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield (*path, _scalar(value))


def _scalar(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return str(value)
    as_number = quantities.read_number(value) if isinstance(value, str) and len(value) < 40 else None
    if as_number is None and isinstance(value, int | float):
        as_number = float(value) if abs(value) < 1e300 else 0.0
    return round(as_number, 9) if as_number is not None else plain_text(str(value))


def _wrong_json(
    reference: Any, found: dict[str, Any], prompt: str | None, required: Sequence[str] | None
) -> tuple[str, str]:
    allowed = list(reference) if isinstance(reference, dict) else []
    missing = [key for key in (allowed if required is None else required) if found.get(key) in (None, "", [])]
    extra = [key for key in found if key not in allowed]
    if extra and required is None:
        return "wrong_schema", f"has a field {extra[0][:60]!r}"
    if missing:
        return "missing_field", f"{missing[0]!r} is missing or blank"
    if prompt is not None:
        page, there = plain_text(prompt), {round(n, 9) for n in quantities.numbers(prompt)}
        for *_, leaf in _leaves(found):
            if (leaf not in there) if isinstance(leaf, float) else (leaf not in page and leaf not in ("true", "None")):
                return "invented_value", f"{str(leaf)[:60]!r} does not stand in the prompt"
    return "wrong_value", "a field differs from the reference"


def words(text: str) -> list[str]:
    """Lower-case words and numbers, the tokens that ROUGE counts."""
    return re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, references: str | Sequence[str]) -> float:
    """ROUGE-L F1 (Lin 2004, section 3) of an answer, the best over the references, on words without stemming."""
    from rapidfuzz.distance import LCSseq

    best, mine = 0.0, words(answer)[:2000]
    for reference in [references] if isinstance(references, str) else references:
        theirs = words(reference)[:2000]
        if mine and theirs:
            best = max(best, 2 * LCSseq.similarity(mine, theirs) / (len(mine) + len(theirs)))
    return best


def summary(
    *, max_words: int | None = None, facts: str | None = None, invented: bool = True, references: str | None = None
) -> ScoreFunction:
    """Cover of the facts where there are some, else ROUGE-L; failures of a summary.

    In order: `too_long`, `copied` (more than 60 % of it in one run of 12 words or more from the prompt),
    `invented_fact` (a number or a name that the prompt has not), `missing_fact`. Without facts the value alone,
    ROUGE-L, says how good a summary is.

    Args:
        max_words: the most words; None for no limit.
        facts: the column of `example.extra` with the facts: a list of texts, or of lists of texts of which one will do.
        invented: look for numbers and names that the prompt does not have.
        references: the column with more references for ROUGE-L.

    Raises:
        WorkbenchError: a limit of no words.
    """
    if max_words is not None and not max_words >= 1:
        raise WorkbenchError(f"`max_words` must be at least 1. Got {max_words!r}. Leave it out for no limit.")

    def score(example: Example, answer: str) -> Score:
        count = len(answer.split())
        rouge = rouge_l(answer, [example.reference, *(example.extra.get(references or "") or [])])
        due = example.extra.get(facts) if facts else None
        covered = [any(has_fact(answer, text) for text in _alternatives(fact)) for fact in due or []]
        value = sum(covered) / len(covered) if covered else rouge
        told = f"ROUGE-L {rouge:.2f}, {count} words"
        if max_words is not None and count > max_words:
            return Score(min(value, 0.99) * max_words / count, "too_long", None, f"{told}; at most {max_words}")
        copied = copied_run(answer, example.prompt)
        if copied >= 12 and copied > 0.6 * len(words(answer)):
            return Score(min(value, 0.99) / 2, "copied", None, f"{told}; {copied} words in a row stand in the prompt")
        made_up = invented_in(answer, example.prompt) if invented else None
        if made_up:
            return Score(min(value, 0.99) / 2, "invented_fact", None, f"{told}; {made_up!r} is not in the prompt")
        if not all(covered):
            lost = _alternatives((due or [])[covered.index(False)])[0]
            return Score(min(value, 0.99), "missing_fact", None, f"{told}; {lost!r} is missing")
        return Score(value, None, None, told)

    return score


def _alternatives(fact: str | Sequence[str]) -> list[str]:
    return [fact] if isinstance(fact, str) else list(fact)


def has_fact(text: str, fact: str) -> bool:
    """True where the text has the fact's words next to each other, in order.

    Numbers go by value (`two` is 2, up to twenty), units by one name, longer words by their stem (`leaks` is `leaking`;
    Snowball, English).
    """
    mine, theirs = _fact_words(text), _fact_words(fact)
    return any(mine[k : k + len(theirs)] == theirs for k in range(len(mine) - len(theirs) + 1)) if theirs else True


_SHORT = {"percent": "%", "per cent": "%", "degrees celsius": "°c", "degrees": "°", "minutes": "min", "minute": "min",
          "hours": "h", "hour": "h", "litres": "l", "litre": "l", "liters": "l", "kilograms": "kg", "grams": "g",
          "metres": "m", "kilometres": "km", "millilitres": "ml", "seconds": "s", "euros": "eur", "euro": "eur",
          "€": "eur"}  # fmt: skip
_SHORT_PATTERN = re.compile(
    r"(?<![a-z])(" + "|".join(sorted(map(re.escape, _SHORT), key=len, reverse=True)) + r")(?![a-z])"
)


_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBER_NAMES = {name: str(float(value)) for value, name in enumerate(_COUNTED.split())}
_STEMMER = stemmer("english")


def _fact_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _SHORT_PATTERN.sub(lambda m: f" {_SHORT[m[1]]} ", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"°\s?c\b", " c", text)
    found = [w for w in re.findall(r"\d+(?:[.:]\d+)*|[^\W\d_]+|[%°]", text) if w != "per"]
    return [str(float(w)) if re.fullmatch(r"\d+(\.\d+)?", w) else _NUMBER_NAMES.get(w) or _stem(w) for w in found]


def _stem(word: str) -> str:
    return _STEMMER.stemWord(word) if len(word) > 3 else word


def copied_run(answer: str, prompt: str) -> int:
    """Length in words of the longest run that answer and prompt share."""
    mine, theirs = words(answer)[:400], words(prompt)[:4000]
    return SequenceMatcher(None, theirs, mine, autojunk=False).find_longest_match().size


_NUMBER_WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.:]\d+)*")  # a time is one word


def invented_in(answer: str, prompt: str) -> str | None:
    """The first number or capitalised name inside a sentence of the answer that the prompt does not have."""

    def value(found: str) -> float | str:
        number = quantities.read_number(found)
        return found if number is None else round(number, 9)

    there = {value(found) for found in _NUMBER_WORD.findall(prompt)}
    for found in _NUMBER_WORD.findall(answer[:5000]):
        if value(found) not in there:
            return found
    page = set(words(prompt))
    for match in re.finditer(r"(?<=[a-z0-9,;] )([A-Z][a-z]+)\b", answer[:5000]):
        if match[1].casefold() not in page:
            return match[1]
    return None


def unit_tests(
    *,
    tests: str = "tests",
    entry: str = "entry_point",
    function: str = "",
    code: Callable[[Example, str], str] | None = None,
    limits: Limits | None = None,
    packages: Sequence[str] = PACKAGES,
    allow_weak_sandbox: bool = False,
) -> ScoreFunction:
    """Share of the tests that pass, in the sandbox. Failures: `syntax_error`, `exception`, `timeout`, `unsafe`,
    `wrong_result`.

    Each example's reference must pass its own tests, or the answer is unscored: tests that compare what cannot leave
    the sandbox (files, objects of own classes) say nothing about an answer.

    Args:
        tests: column with the tests: Python text, or a list of them that count one by one.
        entry: column with the name of the function under test.
        function: column with the name of the function of the tests that takes the candidate (`check` in HumanEval), or
            that name itself; "" where the tests are plain statements.
        code: makes the program out of an example and an answer; default: the answer, its fence taken off.
        limits: of one run.
        packages, allow_weak_sandbox: see `run_python`.
    """
    build = code or (lambda example, answer: extract_code(answer))

    def problems(example: Example, answer: str) -> list[Problem | None]:
        texts = example.extra.get(tests)
        name = example.extra.get(entry)
        if not texts or not isinstance(name, str):
            raise WorkbenchError(f"An example must have tests and a function. Got none in {example.id!r}.")
        check = str(example.extra.get(function, function)) if function else ""
        program = build(example, answer)
        found: list[Problem | None] = []
        for text in [texts] if isinstance(texts, str) else texts:
            ran = run_tests(
                program,
                textwrap.dedent(text),
                name,
                check,
                limits,
                packages=packages,
                allow_weak_sandbox=allow_weak_sandbox,
            )
            found.append(ran.problem)
            if ran.problem and ran.problem.kind in ("syntax_error", "timeout"):
                found += [ran.problem] * (len(texts) - len(found) if not isinstance(texts, str) else 0)
                break
        return found

    checked: dict[tuple[str, str], str] = {}

    def score(example: Example, answer: str) -> Score:
        key = (example.id, example.reference)
        if key not in checked:
            wrong = next((p for p in problems(example, example.reference) if p), None)
            checked[key] = f"{wrong.kind}: {wrong.text}" if wrong else ""
        if checked[key]:
            raise WorkbenchError(f"The reference must pass its own tests. Got {checked[key][:200]} ({example.id}).")
        found = problems(example, answer)
        bad = [p for p in found if p is not None]
        if not bad:
            return Score(1.0)
        kind = {"not_plain": "wrong_result", "crash": "exception", "exit": "exception", "disk": "unsafe"}
        failure = kind.get(bad[0].kind, bad[0].kind)
        return Score(min(0.99, 1 - len(bad) / len(found)), failure, None, str(bad[0]))

    return score


def sql_result(
    *,
    database: str | Path | None = None,
    column: str = "database",
    ordered: Callable[[Example], bool] | None = None,
    seconds: float = 2.0,
    allow_weak_sandbox: bool = False,
) -> ScoreFunction:
    """1 where the query gives the reference query's rows, as a multiset, or in order where the reference orders.

    Failures: `syntax_error`, `unknown_name`, `refused` (anything but one SELECT), `timeout`, `empty_result`,
    `all_columns` (`SELECT *`, and more of them than the reference has), `wrong_columns` (another number of them),
    `wrong_result`. A reference that fails or gives no row cannot tell answers apart: unscored.

    Args:
        database: one SQLite file for all examples, or the folder in which `column` names each example's.
        column: of `example.extra`, with the name of the file (`.sqlite` or `.db` may be left out).
        ordered: whether an example's order of rows counts; default: the reference ends in an outer ORDER BY.
        seconds: for each query.

    Raises:
        WorkbenchError: no time for a query.
    """
    if not seconds > 0:
        raise WorkbenchError(f"`seconds` must be above 0. Got {seconds!r}. Set 2.0.")
    gold: dict[tuple[str, str], Table] = {}
    known: dict[str, Path] = {}

    def find(example: Example) -> Path:
        base = Path(database) if database is not None else Path()
        name = str(example.extra.get(column, ""))
        if base.is_file() or not name:
            return base
        if name not in known:
            tries = [base / name, base / f"{name}.sqlite", base / f"{name}.db", base / name / f"{name}.sqlite"]
            known[name] = next((path for path in tries if path.is_file()), tries[0])
        return known[name]

    def score(example: Example, answer: str) -> Score:
        path = find(example)
        key = (str(path), example.reference)
        query = clean_sql(answer)
        asked = [query] if key in gold else [query, example.reference]
        found, *more = run_sql(path, asked, seconds=seconds, allow_weak_sandbox=allow_weak_sandbox)
        if more:
            gold[key] = more[0]
        wanted = gold[key]
        if wanted.problem or not wanted.rows or wanted.cut:
            why = wanted.problem.text if wanted.problem else "too many rows" if wanted.cut else "no rows"
            raise WorkbenchError(f"A reference query must give rows. Got {why[:200]} ({example.id}).")
        if not found.problem and not found.columns:
            return Score(0.0, "syntax_error", query, "no query")
        if found.problem:
            kinds = ("syntax_error", "unknown_name", "refused", "timeout")
            kind = found.problem.kind if found.problem.kind in kinds else "syntax_error"
            return Score(0.0, kind, query, found.problem.text)
        in_order = ordered(example) if ordered else bool(re.search(r"\border\s+by\b[^()]*$", example.reference, re.I))
        if same_rows(wanted, found, in_order):
            return Score(1.0, None, query)
        if not found.rows:
            return Score(0.0, "empty_result", query, f"no rows; {len(wanted.rows)} are due")
        if len(found.columns) != len(wanted.columns):
            told = f"{len(found.columns)} columns; {len(wanted.columns)} are due"
            star = re.match(r"select\s+(?:distinct\s+|all\s+)?(?:[^\s,()]+\.)?\*", query, re.IGNORECASE)
            everything = star and len(found.columns) > len(wanted.columns)
            return Score(0.0, "all_columns" if everything else "wrong_columns", query, told)
        return Score(0.0, "wrong_result", query, f"{len(found.rows)} rows; {len(wanted.rows)} are due")

    return score


def clean_sql(answer: str) -> str:
    """The query of an answer: its fence taken off, and what stands before the first SELECT or WITH."""
    text = extract_code(answer).strip()
    begin = re.search(r"\b(select|with)\b", text, re.IGNORECASE)
    first = re.match(r"[A-Za-z]+", text)
    prose = begin and first and begin.start() and not re.fullmatch(
        r"insert|update|delete|drop|create|alter|attach|pragma|replace|explain|vacuum|values|begin|detach|reindex",
        first[0], re.IGNORECASE,
    )  # fmt: skip
    return text[begin.start() :] if begin and prose else text


def named(name: str) -> ScoreFunction:
    """A ready verifier by its name and, in brackets, its settings: `number`, `number(tolerance=0.01, unit="m/s")`.

    Raises:
        WorkbenchError: no such verifier or setting.
    """
    import ast

    try:
        tree = ast.parse(name.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        assert isinstance(call.func, ast.Name) and call.func.id in READY
        given = [ast.literal_eval(a) for a in call.args]
        return READY[call.func.id](*given, **{k.arg or "": ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, AssertionError, TypeError, ValueError, re.error) as error:
        why = f": {error}" if str(error) else ""
        raise WorkbenchError(
            f"A verifier must be a function or one of {', '.join(READY)}, with settings in brackets. Got {name!r}{why}."
        ) from None


READY: dict[str, Callable[..., ScoreFunction]] = {
    "exact_match": exact_match,
    "multiple_choice": multiple_choice,
    "regex": regex,
    "number": number,
    "json_fields": json_fields,
    "summary": summary,
    "unit_tests": unit_tests,
    "sql_result": sql_result,
}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem: n samples of which some are correct (arXiv 2107.03374, equation 1).

    Raises:
        WorkbenchError: not 1 <= k <= n, or not 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise WorkbenchError(f"pass@k needs 1 <= k <= n and 0 <= correct <= n. Got n={n}, correct={correct}, k={k}.")
    chance = 1.0
    for i in range(n - correct + 1, n + 1):
        chance *= 1 - k / i
    return 1 - chance


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean pass@k over problems, each as (samples, correct)."""
    values = [pass_at_k(n, c, k) for n, c in counts]
    return sum(values) / len(values) if values else 0.0
