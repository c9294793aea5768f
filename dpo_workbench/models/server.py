"""Answers from any OpenAI-compatible server (vLLM, TGI, `transformers serve`), while training stays here."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from dpo_workbench.common.environment import cache_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.answers import Answer, check_decoding
from dpo_workbench.models.embedded import SMOL_HUB_ID
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.models.openai_api import Refused, chat, checked_address, open_client, served_names

CONCURRENT = 16  # prompts that the server has at one time


@dataclass(frozen=True)
class Server:
    """One model on one server."""

    url: str  # without credentials
    model: str  # the name that it is served by
    count: Callable[[str], int] | None = None  # tokens of a text, where a handle with the tokenizer is at hand


def draw(
    model: Model | str | None,
    prompts: Sequence[str],
    *,
    engine: str | None,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    on_answers: Callable[[int], None] | None = None,
) -> tuple[list[list[Answer]], dict[str, str]]:
    """Answers from the model in memory, or from a server: `generate` with one argument more.

    Args:
        model: a handle; with an engine it may also be the name of the served model, or None where it serves one.
        engine: None, or the address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
        prompts, samples, temperature, max_new_tokens, seed, repetition_penalty, on_answers: as in `generate`.

    Returns:
        `samples` answers for each prompt, in the order of the prompts; and what a result must say of the server
        (`engine`, its address, and `model`, the served name), empty without one.

    Raises:
        WorkbenchError: as `generate`, `connect` and `ask`; a repetition penalty, which the API does not have.
    """
    settings: dict[str, Any] = {"samples": samples, "temperature": temperature, "seed": seed}
    settings |= {"max_new_tokens": max_new_tokens, "on_answers": on_answers}
    if engine is None:
        if model is None or isinstance(model, str):
            raise WorkbenchError(
                f"Without an engine `model` must be a loaded model. Got {model!r}. Load it with `dw.load_model`, or "
                "name the server with engine='http://...'."
            )
        return generate(model, prompts, repetition_penalty=repetition_penalty, **settings), {}
    if repetition_penalty != 1.0:
        raise WorkbenchError(
            f"With an engine `repetition_penalty` must be 1, as the API has none. Got {repetition_penalty}. Run this "
            "arm on a loaded model, without engine."
        )
    server = connect(engine, model)
    return ask(server, prompts, **settings), {"engine": server.url, "model": server.model}


def connect(engine: str, model: Model | str | None) -> Server:
    """Settle which model of which server answers.

    A name is taken as it is. A handle without adapter stands for the served model of its name, Hub id or folder. None,
    or a handle that the server does not list, takes the only model that is served.

    Args:
        engine: the server's address, mostly ending in /v1. A key is read from the variable OPENAI_API_KEY alone.
        model: a name, a handle, or None.

    Raises:
        WorkbenchError: a handle with an adapter; no address, or one with a password; and, unless `model` is a name:
            nothing listens there, or it does not list one model that can be meant.
    """
    url = checked_address(engine)
    if isinstance(model, str):
        return Server(url, model)
    if model and model.adapter:
        raise WorkbenchError(
            f"A server answers with what it serves, not with a handle's adapter. Got {model!r}. Save the adapter with "
            "`model.save(folder)`, serve it under a name (docs/server.md), and pass that name."
        )
    with open_client(url) as client:
        listed = served_names(client)
    known = (model.name, model.source, SMOL_HUB_ID if model.name == "smol" else "") if model else ()
    found = [name for name in known if name in listed] or (listed if len(listed) == 1 else ())
    if not found:
        raise WorkbenchError(
            f"`model` must say which model of {url} shall answer. It lists {', '.join(listed) or 'none'}. Pass the "
            "name that it is served by, such as model='owner/name'."
        )
    if model is None:
        return Server(url, found[0])
    if found[0] not in known:
        print(f"{url} answers with {found[0]!r}, the only model there; it is taken for {model.name!r}")
    return Server(url, found[0], lambda text: len(model.tokenizer(text, add_special_tokens=False)["input_ids"]))


def ask(
    server: Server,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    on_answers: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Sample answers at a server; the result is in the order of `prompts`, `samples` answers each.

    Each prompt is one user turn at the chat endpoint, as in `Model.prompt_ids`; **the server applies its own chat
    template**, which for `smol` adds a system message (docs/server.md shows how to serve the same template). Several
    samples are asked for with `n`; what a server leaves out is asked for again. Sample k of prompt i has the seed
    s + i * samples + k, if the server heeds seeds.

    Answers are written down as they arrive. When the server dies, or the call is interrupted, the same call (server,
    model, prompts and settings) goes on where it stopped: no prompt is lost, none is answered twice.

    `Answer.n_tokens` is the server's `usage`; where one reply holds several answers it is counted with the handle's
    tokenizer, or, for want of one, shared out by length of text.

    Args:
        server: from `connect`.
        prompts, samples, temperature, max_new_tokens, seed, on_answers: as in `generate`.

    Raises:
        WorkbenchError: what `check_decoding` raises; answers cannot be written down; and what `chat` raises.
    """
    check_decoding(samples, temperature, max_new_tokens)
    request = {"model": server.model, "temperature": temperature, "max_tokens": max_new_tokens}
    key = json.dumps([server.url, request, samples, seed, list(prompts)])
    path = cache_folder() / "unfinished" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"
    answers = _kept(path, len(prompts), samples)
    advance = on_answers or (lambda n: None)
    n_kept, total = sum(map(len, answers)), samples * len(prompts)
    if n_kept:
        print(f"going on: {n_kept} of {total} answers are in {path} from a call that stopped; delete it to start anew")
        advance(n_kept)
    asked = _Asked(server, request, prompts, samples, seed * 1_000_003)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replies = asked.replies([len(drawn) for drawn in answers])
        with path.open("a", encoding="ascii") as file, closing(replies):
            file.write("\n")  # a line that a kill cut off must not swallow the next
            for i, new in replies:
                for k, answer in enumerate(new, len(answers[i])):
                    file.write(json.dumps({"prompt": i, "sample": k, **asdict(answer)}) + "\n")
                file.flush()
                answers[i] += new
                advance(len(new))
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WorkbenchError(
            f"Answers are written down as they arrive, in {path.parent}. The system says: {error.strerror or error}. "
            "Free some space, or set DPO_WORKBENCH_CACHE to a folder that can be written."
        ) from error
    except WorkbenchError as error:
        n = sum(map(len, answers))
        raise WorkbenchError(f"{error} {n} of {total} answers are kept; the same call asks for the others.") from None
    if samples > 1 and all(len({a.text for a in drawn}) == 1 for drawn in answers):
        warnings.warn(
            f"All {samples} samples of each prompt are the same: {server.url} seems not to sample. `transformers "
            "serve` does only where the model's generation_config.json has do_sample true (docs/server.md).",
            stacklevel=4,
        )
    return answers


def _kept(path: Path, n_prompts: int, samples: int) -> list[list[Answer]]:
    """The answers that a stopped call wrote down; what is no whole line is passed over and asked for again."""
    answers: list[list[Answer]] = [[] for _ in range(n_prompts)]
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line)
            place, k, answer = answers[row.pop("prompt")], row.pop("sample"), Answer(**row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue
        if k == len(place) < samples:
            place.append(answer)
    return answers


@dataclass
class _Asked:
    """The requests of one call of `ask`, made by threads that leave their replies in `done`."""

    server: Server
    request: dict[str, Any]
    prompts: Sequence[str]
    samples: int
    seed: int
    most: int = 2**31  # choices in one reply; 1 once the server has refused several
    todo: SimpleQueue[tuple[int, int]] = field(default_factory=SimpleQueue)  # prompt, and how many answers it has
    done: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    stop: Event = field(default_factory=Event)

    def replies(self, have: list[int]) -> Generator[tuple[int, list[Answer]], None, None]:
        """(prompt, new answers) as they arrive, for the prompts that have fewer than `samples`.

        After an error no request is begun; those at the server are waited for, then it is raised. An interrupt leaves
        at once: the threads are daemons.
        """
        missing = [(i, n) for i, n in enumerate(have) if n < self.samples]
        for one in missing:
            self.todo.put(one)
        running, failed = min(CONCURRENT, len(missing)), None
        with open_client(self.server.url) as client:
            for _ in range(running):
                Thread(target=self._work, args=(client,), daemon=True).start()
            try:
                while running:
                    got = self.done.get()
                    if got is None:
                        running -= 1
                    elif isinstance(got, Exception):
                        failed = failed or got
                    else:
                        yield got[0], self._answers(*got[1])
            finally:
                self.stop.set()
        if failed:
            raise failed

    def _work(self, client: Any) -> None:
        try:
            while not self.stop.is_set():
                i, n = self.todo.get_nowait()
                while n < self.samples and not self.stop.is_set():
                    reply = self._reply(client, i, n)
                    self.done.put((i, reply))
                    n += len(reply[0])
        except Empty:
            pass
        except Exception as error:  # is raised in the caller's thread
            self.stop.set()
            self.done.put(error)
        self.done.put(None)

    def _reply(self, client: Any, i: int, have: int) -> tuple[list[str], list[bool], int | None]:
        n = min(self.samples - have, self.most)
        seed = (self.seed + i * self.samples + have) % 2**31
        try:
            return chat(client, self.prompts[i], n, {**self.request, "seed": seed})
        except Refused:
            if n == 1:
                raise
            self.most = 1  # perhaps several answers in one reply are what it does not accept
            return self._reply(client, i, have)

    def _answers(self, texts: list[str], finished: list[bool], n_tokens: int | None) -> list[Answer]:
        count, letters = self.server.count, max(1, sum(map(len, texts)))
        if n_tokens is not None and len(texts) == 1:
            tokens = [n_tokens]
        elif count is not None:
            tokens = [count(text) + end for text, end in zip(texts, finished, strict=True)]  # and the end token
        elif n_tokens is not None:
            tokens = [round(n_tokens * len(text) / letters) for text in texts]
        else:
            raise WorkbenchError(
                f"A reply must say how many tokens it has (usage.completion_tokens). {self.server.url} does not. Pass "
                "`model` as a handle, whose tokenizer can count."
            )
        return [Answer(*one) for one in zip(texts, tokens, finished, strict=True)]
