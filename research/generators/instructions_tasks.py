"""Write the data of the task `instructions`: requests with one to three constraints. Nothing is planted.

`python research/make_tasks.py instructions`. Subjects, kinds of text, wordings of constraints, words to use and phrases
are disjoint between splits; all kinds of constraint occur in all splits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpo_workbench.tasks.task import Example
from generators import instructions_subjects as lists

SEEDS = {"train": 0, "dev": 1, "test": 2}
SIZES = {"train": 1500, "dev": 200, "test": 300}
NUMBERS = "zero one two three four five six seven eight nine ten".split()
JOINS = {
    "train": ("{request} {all}", "{request}\n{all}", "{request}\n\nRules:\n{list}"),
    "dev": ("{request}\n\n{all}",),
    "test": ("{request}\n\nConditions:\n{list}", "{all}\n\n{request}", "{request} {all}"),
}
LANGUAGES = {"es": "Spanish", "fr": "French", "de": "German", "it": "Italian"}


@dataclass(frozen=True)
class Rule:
    """`make(rng, split, about)` gives the parameters of a constraint. The wordings are of train | dev | test, each with
    several separated by `/`; braces take parameters."""

    kind: str
    make: Callable[[random.Random, str, list[str]], dict[str, Any]]
    wordings: str

    def of(self, split: str) -> list[str]:
        return [text.strip() for text in self.wordings.split("|")[("train", "dev", "test").index(split)].split(" / ")]


def _n(limit: str, *numbers: int, **more: Any) -> Callable[[random.Random, str, list[str]], dict[str, Any]]:
    return lambda rng, split, about: {limit: rng.choice(numbers), **more}


def _none(**fixed: Any) -> Callable[[random.Random, str, list[str]], dict[str, Any]]:
    return lambda rng, split, about: dict(fixed)


def _some(words: dict[str, str], low: int, high: int) -> Callable[[random.Random, str, list[str]], dict[str, Any]]:
    return lambda rng, split, about: {"words": rng.sample(words[split].split(","), rng.randint(low, high))}


def _between(rng: random.Random, split: str, about: list[str]) -> dict[str, Any]:
    low = rng.choice((20, 30, 40, 50, 60, 70))
    return {"at_least": low, "at_most": low + rng.choice((15, 20, 30))}


def _letters(rng: random.Random, split: str, about: list[str]) -> dict[str, Any]:
    letter = rng.choice([c for c in "bfgkpvwy" if c not in "".join(about)])
    return {"letter": letter, "at_most": rng.choice((2, 3, 4, 5))}


def _plain(rng: random.Random, split: str) -> str:
    return rng.choice(lists.PLAIN_WORDS[split].split(","))


def _first_word(rng: random.Random, split: str, about: list[str]) -> dict[str, Any]:
    total = rng.choice((2, 3))
    return {"paragraph": rng.randint(1, total), "word": _plain(rng, split), "paragraphs": total}


RULES = (
    Rule("words", _n("at_most", 30, 40, 50, 60, 80), "Use at most {at_most} words. / Stay within {at_most} words. / No more than {at_most} words, please. | The limit is {at_most} words. | It must not be longer than {at_most} words. / Keep the word count at or under {at_most}."),
    Rule("words", _n("at_least", 40, 60, 80, 100), "Use at least {at_least} words. / Do not stop before you have {at_least} words. / I want {at_least} words or more. | Fill at least {at_least} words. | It should run to {at_least} words at the very least. / Anything under {at_least} words is too short."),
    Rule("words", _between, "Write between {at_least} and {at_most} words. / The length must be {at_least} to {at_most} words. | Aim for a length from {at_least} to {at_most} words. | Not fewer than {at_least} and not more than {at_most} words."),
    Rule("words", _n("around", 40, 50, 60, 80, 100), "Write about {around} words. / The text should have roughly {around} words. | Approximately {around} words are wanted. | Some {around} words will do, give or take a few."),
    Rule("sentences", _n("exactly", 2, 3, 4, 5), "Use exactly {exactly} sentences. / Say it in {exactly} sentences. / The text has {exactly} sentences, not more and not fewer. | Make it precisely {exactly} sentences. | {exactly} sentences, please. / Spread it over {exactly} sentences and then stop."),
    Rule("sentences", _n("at_most", 2, 3, 4, 5), "Use at most {at_most} sentences. / Do not go beyond {at_most} sentences. | Limit yourself to {at_most} sentences. | A maximum of {at_most} sentences is allowed. / Be done after {at_most} sentences."),
    Rule("sentences", _n("at_least", 3, 4, 5, 6), "Use at least {at_least} sentences. / Write {at_least} sentences or more. | There should be {at_least} sentences as a minimum. | Less than {at_least} sentences would be too little."),
    Rule("longest_sentence", _n("at_most", 8, 10, 12, 15), "No sentence may have more than {at_most} words. / Keep every sentence to {at_most} words or fewer. | All sentences have {at_most} words at most. | Each of your sentences must be done within {at_most} words."),
    Rule("paragraphs", _n("exactly", 2, 3, 4), "Write exactly {exactly} paragraphs with an empty line between them. / Divide the text into {exactly} paragraphs by empty lines. | Make {exactly} paragraphs and leave a line free between them. | Arrange it in {exactly} paragraphs set apart by blank lines. / Let it have {exactly} paragraphs (blank line between each)."),
    Rule("paragraphs", _n("exactly", 2, 3, mark="***"), "Write {exactly} paragraphs and put *** between them. / Have {exactly} paragraphs, with *** as the divider. | Use *** to divide {exactly} paragraphs. | Between any two of the {exactly} paragraphs goes a line of ***."),
    Rule("lines", _n("exactly", 3, 4, 5, 6), "Write exactly {exactly} lines. / The text has {exactly} lines. | Use {exactly} lines, no more and no less. | It must come out as {exactly} lines."),
    Rule("lines", _n("at_most", 2, 3, 4, 6), "Write no more than {at_most} lines. / Use {at_most} lines at most. | Keep it to {at_most} lines. | Up to {at_most} lines are fine, more are not."),
    Rule("bullets", _n("exactly", 2, 3, 4, 5, 6), "Give exactly {exactly} bullet points, each on a line that starts with a dash. / Make a list of {exactly} items with - at the start of each line. / Answer in {exactly} bullets (- like this). | Have {exactly} dashes that start {exactly} list lines. | I expect {exactly} bullet items, written with a leading hyphen. / Format: a list with {exactly} hyphen bullets."),
    Rule("bullets", _n("at_least", 2, 3, 4), "Include at least {at_least} bullet points that start with a dash. / Somewhere, list {at_least} or more things, each behind a dash on a new line. | Add a dashed list with {at_least} entries or more. | Your text contains a list of hyphen bullets with no fewer than {at_least} entries."),
    Rule("bullets", _n("at_most", 0), "Do not use bullet points. / Avoid lists with dashes or stars. | No bullets. | Bulleted lists are not allowed."),
    Rule("numbered", _n("exactly", 3, 4, 5), "Give a numbered list with exactly {exactly} items (1. 2. 3.). / Number your {exactly} points 1., 2. and so on, one on each line. | Write {exactly} numbered lines such as 1. and 2. | Present it as {exactly} numbered points, each on a line of its own. / Count from 1. to {exactly}. in a list."),
    Rule("headings", _n("at_least", 2, 3), "Use at least {at_least} headings in Markdown, with # at the start of the line. / Structure it with {at_least} Markdown headings (# ...). | Put in {at_least} Markdown headings or more. | No fewer than {at_least} lines must be Markdown headings that begin with #."),
    Rule("sections", lambda rng, split, about: {"heading": rng.choice(lists.HEADINGS[split]), "exactly": rng.choice((2, 3))}, "Divide it into {exactly} parts whose first lines are {heading} 1, {heading} 2 and so on. / Write {exactly} sections and start them with {heading} 1 and its successors. | Number the {exactly} sections as {heading} 1, {heading} 2 and so forth. | Mark {exactly} sections with the lines {heading} 1, {heading} 2, and continue like that if needed."),
    Rule("capital_words", _n("at_least", 2, 3, 4), "Write at least {at_least} words in capitals for emphasis. / Let {at_least} or more words be all in CAPITALS. | Shout {at_least} words or more, that is, put them in capitals. | Emphasise a minimum of {at_least} words by writing them in block capitals."),
    Rule("capital_words", _n("at_most", 2, 3, 4), "At most {at_most} words may be all in capitals (I counts as one). / No more than {at_most} words in full capitals. | Words in capitals only: {at_most} at most. | Do not have more than {at_most} words in block capitals."),
    Rule("commas", _n("at_most", 0), "Do without commas. / Do not use a single comma. / Commas are not allowed. | Leave out all commas. | The text must be free of commas. / Write it with no comma anywhere."),
    Rule("exclamations", _n("at_most", 0), "Do not use exclamation marks. / No exclamation marks. | Avoid every exclamation mark. | Not one exclamation mark may appear."),
    Rule("exclamations", _n("at_least", 2, 3), "Use at least {at_least} exclamation marks. / Put in {at_least} or more exclamation marks. | Have {at_least} exclamation marks or more. | It takes no fewer than {at_least} exclamation marks."),
    Rule("questions", _n("at_least", 2, 3), "Ask at least {at_least} questions in the text. / Include {at_least} or more questions. | Put in at least {at_least} question marks. | The reader should find no fewer than {at_least} questions in it."),
    Rule("questions", _n("at_most", 0), "Do not ask any question. / No questions in the text. | Avoid questions. | The text must not contain a question."),
    Rule("digits", _n("at_most", 0), "Do not use digits; write numbers as words. / No digits, please. | Leave out all digits. | Spell out every number, so that no digit appears."),
    Rule("digits", _n("at_least", 2, 4), "Use at least {at_least} digits. / Include figures, {at_least} digits or more in all. | Have {at_least} digits or more in it. | There must be no fewer than {at_least} digits in your text."),
    Rule("letter", _letters, "The letter {letter} may occur {at_most} times at most. / Use the letter {letter} no more than {at_most} times. | Limit for the letter {letter}: {at_most} uses. | Do not let the letter {letter} appear over {at_most} times."),
    Rule("letter", lambda rng, split, about: {"letter": rng.choice("bcfgkmpvwy"), "at_least": rng.choice((4, 5, 6))}, "Use the letter {letter} at least {at_least} times. / The letter {letter} must occur {at_least} times or more. | Have {at_least} or more of the letter {letter}. | It needs no fewer than {at_least} uses of the letter {letter}."),
    Rule("keyword", lambda rng, split, about: {"word": _plain(rng, split), "at_least": rng.choice((2, 3))}, 'Use the word "{word}" at least {at_least} times. / The word "{word}" must occur {at_least} or more times. | Repeat "{word}" so that it occurs {at_least} times or more. | I want to read "{word}" no fewer than {at_least} times.'),
    Rule("keyword", lambda rng, split, about: {"word": rng.choice(about), "at_most": rng.choice((2, 3))}, 'Use "{word}" (also inside longer words) at most {at_most} times. / Do not write "{word}" more than {at_most} times, and longer forms count. | "{word}" and its longer forms: {at_most} times at most. | Never go over {at_most} uses of "{word}", including words that begin with it.'),
    Rule("placeholders", _n("at_least", 2, 3), "Leave at least {at_least} gaps to fill in, in square brackets like [date]. / Put in {at_least} or more fields such as [place] in square brackets. | Have at least {at_least} blanks to be completed, like [name]. | Bracketed fields such as [time] must occur, {at_least} or more of them."),
    Rule("highlights", _n("at_least", 2, 3), "Set at least {at_least} phrases between asterisks, *like this*. / Emphasise {at_least} or more passages with *asterisks*. | Mark {at_least} or more spots with *stars* around them. | Make {at_least} passages or more stand out by *stars* on both sides."),
    Rule("keywords", _some(lists.PLAIN_WORDS, 2, 3), "Use the words {words}. / Work in all of these words: {words}. / These words must occur: {words}. | Make sure to have the words {words}. | Find a place for {words}. / Your text has to contain each of: {words}."),
    Rule("forbidden", _some(lists.FORBIDDEN, 2, 4), "Do not use the words {words}. / Avoid these words: {words}. / The following words are taboo: {words}. | Stay away from the words {words}. | None of these may appear: {words}. / Manage without the words {words}."),
    Rule("lower_case", _none(), "Write everything in small letters. / Do not use any capital letter. | Use small letters only, also for names and at the start of sentences. | Not one capital letter is allowed. / Let all letters be small ones."),
    Rule("upper_case", _none(), "Write everything in capitals. / Use capital letters only. | All letters must be capitals. | Every letter has to be a capital. / Type it with caps lock on."),
    Rule("quoted", _none(), 'Put the whole text in double quotes. / Start and end with a double quote ("). | Enclose all of it in double quotes. | The first and last character must be a double quote.'),
    Rule("title", _none(), "Give it a title in double angle brackets, <<like this>>. / Start with a title between << and >>. | Add a title such as <<A Title>>. | It carries a title, and the title stands between << and >>."),
    Rule("starts_with", lambda rng, split, about: {"phrase": rng.choice(lists.STARTS[split])}, 'Begin with the words "{phrase}". / Your first words must be "{phrase}". | Open with "{phrase}". | The very first thing to read is "{phrase}".'),
    Rule("ends_with", lambda rng, split, about: {"phrase": rng.choice(lists.ENDS[split])}, 'End with the sentence "{phrase}" / Your last words must be "{phrase}" / Close with "{phrase}" | Finish on "{phrase}" | The final sentence has to read "{phrase}" / Nothing may come after the closing words "{phrase}"'),
    Rule("paragraph_start", _first_word, 'Write {paragraphs} paragraphs, with an empty line between them; paragraph number {paragraph} starts with the word "{word}". / Have {paragraphs} paragraphs set apart by empty lines, and begin number {paragraph} of them with "{word}". | Make {paragraphs} paragraphs (empty line between), number {paragraph} of which starts with "{word}". | Of its {paragraphs} paragraphs, which blank lines keep apart, number {paragraph} opens with the word "{word}".'),
    Rule("postscript", lambda rng, split, about: {"marker": rng.choice(("P.S.", "P.P.S."))}, "After the text, add a line that starts with {marker} / Close with an afterthought behind {marker} | Add one more remark after {marker} | Have a last remark, and put {marker} in front of it."),
    Rule("json_only", _none(), "Answer with a JSON object and nothing else. / Give the text as JSON, with no words outside of it. | Return only valid JSON. | Nothing but a JSON object is accepted. / Deliver a JSON object, no comments around it."),
    Rule("json_only", lambda rng, split, about: {"keys": rng.sample(("title", "text", "mood", "place", "summary"), 2)}, "Answer only with a JSON object that has the keys {keys}. / Give nothing but JSON with the keys {keys}. | Return a JSON object with keys {keys}, and nothing else. | A single JSON object is expected, and its keys include {keys}."),
    Rule("versions", lambda rng, split, about: {"mark": rng.choice(lists.MARKS[split])}, "Write two different versions with {mark} between them. / Give two versions and separate them by {mark} | Offer a second version after {mark} | I need two distinct drafts, and a line {mark} has to divide them."),
    Rule("repeats_request", _none(request=""), "Before you answer, copy the text above exactly. / Start your answer with an exact copy of everything above this line. | Your answer opens with all of the above, copied letter by letter. | First write out all that stands above, unaltered, then answer."),
    Rule("one_of", lambda rng, split, about: {"answers": list(rng.choice(lists.CHOICES[split]))}, "Answer with one of these: {answers} / Choose exactly one of these answers: {answers} | Pick your answer from these: {answers} | Only one of these can be your reply: {answers}"),
    Rule("language", lambda rng, split, about: {"language": rng.choice(list(LANGUAGES))}, "Write in {language}. / The text must be in {language}. | Use {language} for your answer. | Do all of it in {language}, not in English."),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))

Chosen = tuple[Rule, dict[str, Any]]
# Kinds that decide how long the text is or how it is divided: no two of these, but for a generous number of words.
SHAPE = {"words", "sentences", "longest_sentence", "paragraphs", "lines", "bullets", "numbered", "headings", "sections",
         "paragraph_start", "versions", "json_only", "one_of", "title"}  # fmt: skip
# Kinds that can be combined with these only.
ONLY_WITH = {
    "json_only": {"keywords", "forbidden", "exclamations", "digits"},
    "versions": {"commas", "lower_case", "upper_case", "keywords", "forbidden", "exclamations", "language", "digits"},
    "repeats_request": {"bullets", "numbered", "postscript", "ends_with"},
    "one_of": {"quoted"},
    "language": {"words", "sentences", "paragraphs", "bullets", "commas", "quoted", "title", "highlights", "upper_case",
                 "lower_case", "versions", "exclamations", "questions", "digits", "lines", "placeholders"},
}  # fmt: skip
CONFLICTS = {
    "lower_case": {"upper_case", "capital_words", "sections", "starts_with", "ends_with", "postscript", "one_of"},
    "upper_case": {"capital_words", "sections", "starts_with", "ends_with", "postscript", "one_of", "letter"},
    "starts_with": {"title", "paragraph_start", "quoted", "bullets", "numbered", "headings", "sections", "lines"},
    "ends_with": {"postscript", "quoted", "bullets", "numbered", "paragraphs", "lines", "sentences"},
    "postscript": {"quoted", "sentences", "paragraphs", "paragraph_start", "lines", "bullets", "longest_sentence"},
    "digits": {"numbered", "sections"},
    "questions": {"ends_with", "bullets", "numbered"},
    "quoted": {"bullets", "numbered", "headings", "sections", "title"},
    "highlights": {"lines", "paragraphs"},
    "sentences": {"questions", "exclamations"},
    "letter": {"keywords", "keyword", "starts_with", "ends_with", "paragraph_start", "sections", "postscript"},
    "placeholders": {"lower_case", "letter"},
    "keyword": {"keywords", "paragraph_start"},
    "keywords": {"paragraph_start"},
    "capital_words": {"postscript"},
}


def compatible(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one answer can well meet both constraints."""
    a, b = one["kind"], other["kind"]
    if a == b or b in CONFLICTS.get(a, ()) or a in CONFLICTS.get(b, ()):
        return False
    if (a in ONLY_WITH and b not in ONLY_WITH[a]) or (b in ONLY_WITH and a not in ONLY_WITH[b]):
        return False
    if a not in SHAPE or b not in SHAPE:
        return True
    limit = one if a == "words" else other if b == "words" else {}
    return limit.get("at_most", 0) >= 40 and "at_least" not in limit


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The first `n` requests of a split, no prompt twice. Kinds come in turns, so that all occur often."""
    rng = random.Random(f"instructions {split} {seed}")
    subjects = [entry.split(":") for entry in lists.SUBJECTS[split].split(";")]
    found: list[Example] = []
    seen: set[str] = set()
    used: Counter[str] = Counter()
    while len(found) < n:
        first = KINDS[len(found) % len(KINDS)]
        subject, words = rng.choice(subjects)
        about = words.split(",")
        chosen = choose(first, split, subject, about, used, rng)
        example = make_example(f"instructions-{split}-{len(found)}", split, chosen, subject, about, rng)
        if example.prompt not in seen:
            seen.add(str(example.prompt))
            found.append(example)
            used.update(rule.kind for rule, _ in chosen)
    return found


def choose(
    first: str, split: str, subject: str, about: list[str], used: Counter[str], rng: random.Random
) -> list[Chosen]:
    """A constraint of a given kind and up to two more that go with it, of kinds that were used less so far."""
    wanted = rng.choice((1, 1, 2, 2, 2, 3, 3))
    chosen: list[Chosen] = []
    rules = [rule for rule in RULES if rule.kind == first]
    for _ in range(60):
        rule = min(rng.sample(rules, min(2, len(rules))), key=lambda rule: used[rule.kind])
        constraint = {"kind": rule.kind, **rule.make(rng, split, about)}
        if fits(constraint, [c for _, c in chosen], subject):
            chosen.append((rule, constraint))
            rules = list(RULES)
        if len(chosen) == wanted:
            break
    return sorted(chosen, key=lambda entry: entry[0].kind == "repeats_request")


def make_example(
    name: str, split: str, chosen: list[Chosen], subject: str, about: list[str], rng: random.Random
) -> Example:
    """The request that says these constraints."""
    kinds = [rule.kind for rule, _ in chosen]
    request = rng.choice((lists.QUESTIONS if "one_of" in kinds else lists.TEXTS)[split]).format(s=subject)
    told = [worded(rule, constraint, split, rng) for rule, constraint in chosen]
    if kinds[-1] == "repeats_request":
        above = " ".join([request, *told[:-1]])
        chosen[-1][1]["request"] = above
        prompt = f"{above}\n{told[-1]}"
    else:
        listed = "\n".join(f"- {text}" for text in told)
        prompt = rng.choice(JOINS[split]).format(request=request, all=" ".join(told), list=listed)
    extra: dict[str, Any] = {"constraints": [constraint for _, constraint in chosen]}
    if not {"language", "one_of"} & set(kinds):
        extra["about"] = about
    return Example(name, prompt, "", subject, extra)


def fits(constraint: dict[str, Any], others: list[dict[str, Any]], subject: str) -> bool:
    """Whether a constraint goes with those chosen before, and no forbidden word is needed by another or the subject."""
    needed, banned = subject.lower().split(), set()
    for one in (constraint, *others):
        if one["kind"] == "forbidden":
            banned |= set(one["words"])
        else:
            needed += " ".join(map(str, one.values())).lower().split()
    clash = any(text.strip(".,?!'\"[]") in banned for text in needed)
    return not clash and all(compatible(constraint, other) for other in others)


def worded(rule: Rule, constraint: dict[str, Any], split: str, rng: random.Random) -> str:
    """A constraint in words: small numbers are spelled out in half of the cases."""
    spelled = rng.random() < 0.5
    said: dict[str, Any] = {}
    for key, value in constraint.items():
        if isinstance(value, list):
            value = ", ".join(value) if key != "answers" else " / ".join(f'"{v}"' for v in value)
        elif key == "language":
            value = LANGUAGES[value]
        elif isinstance(value, int) and value <= 10 and spelled and key != "paragraph":
            value = NUMBERS[value]
        said[key] = value
    text = rng.choice(rule.of(split)).format(**said)
    return text[0].upper() + text[1:]
