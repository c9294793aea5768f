"""Made-up answers to IFEval's prompts, with and without what they ask for: to try `research/compare_ifeval.py` on."""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.tasks.task import Example

Form = Callable[[str, Any], str]  # text, constraint -> text


def made_up(examples: list[Example], n: int) -> Iterator[tuple[Example, str]]:
    """`n` answers for each prompt: sentences of plain prose, changed in forms that are right, wrong or nearly right."""
    rng = random.Random(0)
    prose = re.findall(r"[^.!?\n]{20,}[.!?]", (data_folder() / "plain_text.txt").read_text(encoding="utf-8"))
    for example, _ in itertools.product(examples, range(n)):
        text = " ".join(rng.sample(prose, rng.choice((1, 2, 4, 8, 16))))
        if rng.random() < 0.3:
            text = text.replace(". ", rng.choice((".\n", ".\n\n", ".\n* ", ".\n- ", ".\n***\n", ".\n\n\n\n")))
        for constraint in rng.sample(example.extra["constraints"], len(example.extra["constraints"])):
            form = rng.choice([lambda text, c: text, *FORMS.get(constraint["kind"], ())])
            text = form(text, {**constraint, "times": rng.randint(1, 6)})
        frames = ("{}", "{}", "{}", "Here it is:\n{}", "{}\n\nI hope this helps!", "**{}**")
        yield example, rng.choice(frames).replace("{}", text)


def _put(*forms: str) -> list[Form]:
    """Each form with the text and the constraint's parameters in its braces."""
    return [lambda text, c, form=form: form.format_map(defaultdict(str, c, text=text)) for form in forms]


def _repeated(*units: str) -> list[Form]:
    """Each unit added to the text several times."""

    def form(unit: str) -> Form:
        return lambda text, c: text + "".join(unit.format_map(defaultdict(str, c, n=k + 1)) for k in range(c["times"]))

    return [form(unit) for unit in units]


FORMS: dict[str, Sequence[Form]] = {
    "keyword": _repeated(" {word}", " {word}s", " non{word}", " {word}-like"),
    "keywords": (
        lambda text, c: f"{text} {' '.join(c['words'])}",
        lambda text, c: f"{text} {' '.join(w.upper() + 's' for w in c['words'])}",
        lambda text, c: f"{text} {' '.join('pre' + w for w in c['words'])}",
    ),
    "forbidden": (
        lambda text, c: text,
        lambda text, c: f"{text} {c['words'][0]}s",
        lambda text, c: f"{text} {c['words'][0].upper()}",
    ),
    "letter": _repeated(" {letter}{letter}"),
    "title": _put("<<My Day>>\n{text}", "<My Day>\n{text}", "<< >>\n{text}", "{text} <<<x>>>", "<<\nMy day>>{text}"),
    "postscript": _put(
        "{text}\n\n{marker} More.",
        "{text} {marker} More.",
        "{text}\nPS: More.",
        "{text}\nP.S More.",
        "{text}\np. s. more",
        "{text}\n**{marker}** More",
        "{text}\n{marker}",
        "{text}({marker} so)",
    ),
    "placeholders": _repeated(" [name]", " []", " [a link](x)", " [two\nlines]", " [ ]", " [[x]]"),
    "highlights": _repeated(" *so*", " **so**", "\n* item", " * *", " ***so***", " *so\n*", " 2 * 3 * 4"),
    "bullets": _repeated(
        "\n* item", "\n- item", "\n• item", "\n*item", "\n-item", "\n  * item", "\n+ item", "\n---", "\n1. item"
    ),
    "sections": _repeated(
        "\n{heading} {n}\ntext", "\n**{heading} {n}**", " as {heading} {n} says", "\n{heading}: {n}", "\n# {heading}{n}"
    ),
    "paragraphs": (
        lambda text, c: "\n***\n".join([text] * c["exactly"]),
        lambda text, c: " *** ".join([text] * c["exactly"]),
        lambda text, c: "***\n" + "\n***\n".join([text] * c["exactly"]) + "\n***",
        lambda text, c: "\n***\n***\n".join([text] * c["exactly"]),
        lambda text, c: "\n\n".join([text] * c["exactly"]),
    ),
    "paragraph_start": (
        lambda text, c: "\n\n".join([f"{c['word'].capitalize()}, {text}"] * c["paragraphs"]),
        lambda text, c: "\n\n\n\n".join([f'"{c["word"]}" {text}'] * c["paragraphs"]),
        lambda text, c: "\n \n".join([f"{c['word']}-like {text}"] * c["paragraphs"]),
        lambda text, c: "\n\n".join([f"**{c['word']}** {text}"] * c["paragraphs"]),
    ),
    "versions": _put(
        "{text}\n******\nOther.",
        "{text}******{text}",
        "******\n{text}\n******\nOther.",
        "{text}\n***\nOther",
        "{text}\n******\n******\nOther.",
        "One.\n******\nTwo.\n******\nThree.",
    ),
    "repeats_request": _put("{request}\n\n{text}", "{request}", "Sure! {request} {text}", "  {request}\n{text}"),
    "ends_with": _put(
        "{text} {phrase}", '{text} "{phrase}"', "{text} {phrase} Bye.", "{text} **{phrase}**", "{text} {phrase}."
    ),
    "quoted": _put('"{text}"', "“{text}”", "'{text}'", '"{text}', '"""{text}"""', '"{text}".'),
    "one_of": _put(
        "My answer is yes.",
        "my answer is no.",
        "My answer is yes. My answer is no.",
        "{text} My answer is maybe.",
        "My answer is maybe",
    ),
    "json_only": _put(
        '{{"a": "b"}}', '```json\n{{"a": 1}}\n```', '["a"]', '"a"', "3", '{{"a": }}', '{{"a": "b"}} done', "```\n[1]```"
    ),
    "upper_case": (lambda text, c: text.upper(), lambda text, c: text.upper() + " a", lambda text, c: "AHA 5"),
    "lower_case": (lambda text, c: text.lower(), lambda text, c: text.lower() + " I", lambda text, c: "oh 5"),
    "capital_words": _repeated(" BIG", " I", " A-B", " X1"),
    "commas": (lambda text, c: text.replace(",", ""), lambda text, c: text, lambda text, c: text.replace(",", "、")),
    "language": (lambda text, c: SAMPLES.get(c["language"], text), lambda text, c: text),
}
SAMPLES = {
    "kn": "ನಮಸ್ಕಾರ ಇದು ಒಂದು ಸಣ್ಣ ಪಠ್ಯ",
    "pa": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਇਹ ਇੱਕ ਛੋਟਾ ਪਾਠ ਹੈ",
    "bn": "এটি একটি ছোট লেখা এবং এটি বাংলায়",
    "hi": "यह एक छोटा पाठ है और यह हिंदी में है",
    "mr": "हा एक छोटा मजकूर आहे आणि तो मराठी मध्ये आहे",
    "vi": "Đây là một văn bản ngắn và nó được viết cho các bạn",
    "ko": "이것은 짧은 글입니다",
    "ru": "Это короткий текст и он на русском языке",
    "pt": "Este é um texto curto e não é muito difícil para você",
    "ta": "இது ஒரு சிறிய உரை",
    "sw": "Hii ni habari fupi na ni ya watu wa hapa kwa sasa",
}
