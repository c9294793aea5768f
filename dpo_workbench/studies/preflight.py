"""The pre-flight check: what tokenizer, chat template and trainers do with pairs, before there are any weights."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre, table, visible
from dpo_workbench.models.chat import PROBLEMS, Chat
from dpo_workbench.models.files import load_chat, max_positions
from dpo_workbench.models.loading import Model
from dpo_workbench.models.rows import Row, Texts, Unfinished, encode_all, pair_texts
from dpo_workbench.pairs.messages import Prompt, messages_of
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.plots.pairs import MaskDisplay

SHOWN = 3  # pairs of a finding in text and on the page, 1 of a note; `to_dict` has all
ADVICE = {  # kind of `Chat.check`: severity, and what to do; other kinds are notes
    "prompt": ("warning", "Use a template that writes every message, or drop these pairs."),
    "thinking": ("warning", "Close the block in the answers, or switch thinking off, as with enable_thinking=false."),
    "special": ("warning", "Take it out of the texts: the tokenizer reads it as a control token."),
    "contract": ("warning", "Read some of these pairs. If it is about thinking, an argument of the template may help."),
    "end": ("note", "Make sure that whatever serves the trained model stops at this token."),
}
TRL = "1.16"  # the version whose DPOTrainer `trl_row` and this table describe; tests compare them with the installed
TRL_DOES = {  # what happens to pairs, and what to do
    "fails": ("stop it, because the template can't write them", "Put system text into the first user message."),
    "drops": ("are left out in silence: the prompt alone fills max_length", "Shorten the prompt, or raise max_length."),
    "cuts": ("lose the end of an answer, end token included, in silence", "Drop them, or set max_length=None."),
    "prompt": ("lose the prompt's end, which differs once an answer follows", "Change the template, or train here."),
    "bos": ("do not have exactly one BOS token", "Look at the template and at the tokenizer's add_bos_token."),
    "end": ("have an answer without the model's end token", "Add it to the answers, or repair the template."),
    "unfinished": ("get an end token where an answer was cut off", "Leave them out."),
    "tail": ("are also scored on what follows the end token", "Harmless if it is a line break."),
    "other": ("have other tokens than here", "Compare them: `trl_row` has TRL's."),
}
_BLOCK = re.compile(r"</?(think|reason)\w*>")


@dataclass(frozen=True)
class Issue:
    """Something that was found in some pairs."""

    severity: str  # error: training refuses these pairs. warning: something to fix. note: good to know
    what: str
    advice: str
    rows: dict[str, str]  # pair id -> what was found there

    def __str__(self) -> str:
        shown = list(self.rows.items())[: 1 if self.severity == "note" else SHOWN]
        lines = [f"{self.severity}: {self.what}. {self.advice}"]
        lines += [f"    {row_id!r}{found and ': '}{found}" for row_id, found in shown]
        more = f" (and {len(self.rows) - len(shown)} more; --json has all)" if len(self.rows) > len(shown) else ""
        return visible("\n".join(lines) + more)


@dataclass(frozen=True)
class Preflight:
    """The result of `preflight`."""

    model: str
    pairs: int
    lengths: dict[str, list[int]]  # median, 95 % quantile and maximum of the number of tokens
    facts: dict[str, str]  # how many pairs are too long, BOS and end tokens, thinking blocks
    issues: list[Issue]
    trl: dict[str, list[Issue]]  # TRL's version and settings -> what it does
    mask: MaskDisplay | None  # of the shortest pair

    @property
    def failed(self) -> bool:
        """True if training would refuse some of the pairs."""
        return any(issue.severity == "error" for issue in self.issues)

    @property
    def title(self) -> str:
        """The finding."""
        n = sum(issue.severity != "note" for issue in self.issues)
        found = f"{n} thing{'s' * (n > 1)} to fix" if n else "nothing to fix"
        return f"{self.pairs} pairs for {self.model}: {found}{'; training refuses some pairs' * self.failed}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with all pairs of each finding."""
        return asdict(self)

    def _lines(self) -> list[str]:
        lines = [f"{name}: {fact}" for name, fact in self.facts.items()] + [str(issue) for issue in self.issues]
        for form, found in self.trl.items():
            lines.append(f"{form}:{'' if found else ' the same tokens as here'}")
            lines += [f"  {line}" for issue in found for line in str(issue).splitlines()]
        return lines

    def __repr__(self) -> str:
        lengths = [f"{name:<26}{''.join(f'{n:>8}' for n in v)}" for name, v in self.lengths.items()]
        mask = [f"mask of pair {self.mask.id!r}:", repr(self.mask)] if self.mask else []
        return "\n".join([self.title, f"{'tokens':<26}  median    95 %     max", *lengths, *self._lines(), *mask])

    def _repr_html_(self) -> str:
        lengths = table(("tokens", "median", "95 %", "max"), ((name, *v) for name, v in self.lengths.items()))
        mask = self.mask._repr_html_() if self.mask else ""
        return "\n".join([pre(self.title), lengths, *map(pre, self._lines()), mask])


def preflight(
    pairs: Sequence[Pair], model: str | Path, *, max_tokens: int = 1024, template: dict[str, Any] | None = None
) -> Preflight:
    """Check pairs against a model's tokenizer, chat template and limits, for this and other trainers. Needs no weights.

    Args:
        pairs: such as `read_pairs(file).found`.
        model, template: as for `load_model`.
        max_tokens: limit for a prompt with one of its answers.

    Raises:
        WorkbenchError: there are no pairs, the model's files cannot be read, or its template can't be used at all.
    """
    if not pairs:
        raise WorkbenchError("A pre-flight check needs pairs. Got none. Look at what `read_pairs` refused.")
    chat, config = load_chat(model, template)
    texts = [pair_texts(pair) for pair in pairs]
    rows, broken = encode_all(chat, texts, max_tokens, max_positions(config))
    issues = []
    for (rule, advice), found in broken.items():
        details = {row_id: f"{n} tokens" if n else "" for row_id, n in found.items()}
        issues.append(Issue("error", f"{len(found)} of {len(texts)} pairs: {rule}", advice, details))
    made = {row.id for row in rows}
    texts = [text for text in texts if text[0] in made]
    issues += sorted(_template_issues(chat, texts), key=lambda issue: issue.severity, reverse=True)
    trl = f"TRL {TRL}, DPOTrainer with max_length={max_tokens}"
    trl += ", for messages (text is trained without the chat template)" if chat.tokenizer.chat_template else ""
    mask = show(chat, min(rows, key=lambda row: row.n_tokens)) if rows else None
    facts = _facts(chat, rows, texts, max_tokens, max_positions(config))
    return Preflight(
        str(model), len(pairs), _lengths(rows), facts, issues, {trl: _trl_issues(chat, rows, texts, max_tokens)}, mask
    )


def show(model: Model | Chat, row: Row) -> MaskDisplay:
    """A row as the loss sees it: the prompt, and each answer decoded from exactly the tokens that are scored."""
    chat = model.chat if isinstance(model, Model) else model
    parts = [row.prompt_ids, *row.answer_ids]
    tokens = [chat.tokenizer.batch_decode([[i] for i in ids]) for ids in parts]
    return MaskDisplay(row.id, chat.tokenizer.batch_decode(parts), tokens, [ids[-1] == chat.end_id for ids in parts])


def _lengths(rows: Sequence[Row]) -> dict[str, list[int]]:
    counts = [(len(r.prompt_ids), *map(len, r.answer_ids), r.length, r.n_tokens) for r in rows]
    names = ("prompt", "chosen", "rejected", "prompt and longer answer", "packed row")
    places = [math.ceil(q * len(rows)) - 1 for q in (0.5, 0.95, 1)]
    values = dict(zip(names, map(sorted, zip(*counts, strict=True)), strict=False))
    return {name: [found[k] for k in places] for name, found in values.items()}


def _facts(chat: Chat, rows: Sequence[Row], texts: Sequence[Texts], max_tokens: int, positions: int) -> dict[str, str]:
    """Lines about limits, BOS and end tokens, and thinking blocks."""

    def counted(token: int, sequences: Sequence[Sequence[int]]) -> str:
        found = Counter(list(ids).count(token) for ids in sequences)
        return f"{name(token)!r}, {', '.join(f'{n} in {k}' for n, k in found.most_common())} of {found.total()}"

    name, bos, end = chat.tokenizer.convert_ids_to_tokens, chat.tokenizer.bos_token_id, chat.end_id
    answers = [ids for row in rows for ids in row.answer_ids]
    whole = [row.prompt_ids + ids for row in rows for ids in row.answer_ids]
    over = sum(row.length > max_tokens for row in rows)
    share = f"{over} of {len(rows)} pairs ({over / max(1, len(rows)):.0%}) have over max_tokens={max_tokens}"
    stops = ", ".join(repr(name(i)) for i in chat.stop_ids if i != end)
    facts = {
        "too long": f"{share}; the model has {positions:,} positions" if positions < sys.maxsize else share,
        "BOS": f"{counted(bos, whole)} prompts with an answer" if bos is not None else "this tokenizer has none",
        "end token": f"{counted(end, answers)} answers, from {chat.end_from}",
    }
    facts |= {"also stop sampling": stops} if stops else {}
    own = [bool(_BLOCK.search(answer)) for _, _, pair in texts for answer in pair]
    written = [bool(_BLOCK.search(chat.tokenizer.decode(ids))) for ids in answers]
    if any(own + written):
        added, gone = (sum(a > b for a, b in zip(*two, strict=True)) for two in ((written, own), (own, written)))
        blocks = f"{sum(own)} of {len(own)} answers have a block"
        facts["thinking"] = f"{blocks}; the template adds {added} and removes {gone}"
    return facts


def _template_issues(chat: Chat, texts: Sequence[Texts]) -> Iterator[Issue]:
    """What `Chat.check` says about prompts and finished answers, and system text that becomes part of a user turn."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    counts: Counter[str] = Counter()
    for row_id, prompt, answers in texts:
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            kinds = {} if isinstance(answer, Unfinished) else dict(chat.check(prompt, answer))
            counts.update(list(kinds))
            for kind, detail in kinds.items():
                found[kind].setdefault(row_id, f"{name}: {detail}")
    for kind, rows in found.items():
        severity, advice = ADVICE.get(kind, ("note", "Nothing to do if you train here."))
        yield Issue(severity, f"{counts[kind]} of {2 * len(texts)} answers {PROBLEMS[kind]}", advice, rows)
    system = {i: "" for i, prompt, _ in texts if any(m["role"] == "system" for m in messages_of(prompt))}
    if system and not chat.has_system_role:
        what = f"{len(system)} of {len(texts)} pairs have a system message, and this template has no such role"
        yield Issue("note", what, "Its text is put in front of the first user turn here.", system)


def trl_row(chat: Chat, prompt: Prompt, answers: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """What TRL's DPOTrainer makes of a row: ids of prompt, chosen and rejected, and the end of the prompt that it cuts.

    Messages are written by the chat template. Text is tokenized as it is, and the tokenizer's `eos_token` is added to
    the answers. The answers begin where prompt and prompt with answer first differ.
    """
    tokenizer: Any = chat.tokenizer
    if isinstance(prompt, str):
        end = tokenizer.eos_token
        ids = [tokenizer(prompt + a + end * (not a.endswith(end)))["input_ids"] for a in answers]
        ids.insert(0, tokenizer(prompt)["input_ids"])
    else:
        talks = [list(prompt), *([*prompt, {"role": "assistant", "content": str(answer)}] for answer in answers)]
        options = {"return_dict": True, **chat.arguments}
        made = [tokenizer.apply_chat_template(t, add_generation_prompt=t is talks[0], **options) for t in talks]
        ids = [encoded["input_ids"] for encoded in made]
    n = min(len(commonprefix([ids[0], other])) for other in ids[1:])
    return [ids[0][:n], *(other[n:] for other in ids[1:])], ids[0][n:]


def _trl_issues(chat: Chat, rows: Sequence[Row], texts: Sequence[Texts], max_tokens: int) -> list[Issue]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row, (_, prompt, answers) in zip(rows, texts, strict=True):
        asked = messages_of(prompt) if chat.tokenizer.chat_template else prompt
        try:
            for key, detail in _trl_did(chat, row, answers, *trl_row(chat, asked, answers), max_tokens).items():
                found[key][row.id] = detail
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            found["fails"][row.id] = str(error)[:80]
    return [
        Issue("note", f"{len(found[key])} of {len(rows)} pairs {what}", advice, found[key])
        for key, (what, advice) in TRL_DOES.items()
        if key in found
    ]


def _trl_did(
    chat: Chat, row: Row, answers: Sequence[str], ids: list[list[int]], lost: list[int], max_tokens: int
) -> dict[str, str]:
    """How TRL's tokens of a row differ from ours: keys of `TRL_DOES`, and what was found."""
    decode, end, bos = chat.tokenizer.decode, chat.end_id, chat.tokenizer.bos_token_id
    whole = [ids[0] + answer for answer in ids[1:]]
    longest, dropped = max(map(len, whole)), len(ids[0]) >= max_tokens
    tails = [answer[len(answer) - answer[::-1].index(end) :] for answer in ids[1:] if end in answer]
    cut_off = [isinstance(a, Unfinished) and end in own for a, own in zip(answers, ids[1:], strict=True)]
    ours = [list(row.prompt_ids + answer) for answer in row.answer_ids]
    seen = [  # key, whether it is so, what was found
        ("drops", dropped, f"{len(ids[0])} tokens"),
        ("cuts", longest > max_tokens and not dropped, f"{longest} tokens"),
        ("prompt", bool(lost), repr(decode(lost))),
        ("bos", bos is not None and any(w.count(bos) != 1 for w in whole), f"{whole[0].count(bos)} of them"),
        ("end", len(tails) < len(answers), f"it ends with {decode(ids[1][-2:])!r}"),
        ("unfinished", any(cut_off), "the rejected answer"),
        ("tail", any(tails), repr(decode(max(tails, key=len, default=[])))),
    ]
    found = {key: detail for key, is_so, detail in seen if is_so}
    return found if found or ours == whole else {"other": repr(decode(whole[0][-20:]))}
