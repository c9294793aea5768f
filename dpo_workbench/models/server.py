"""Answers from an OpenAI-compatible server (vLLM, TGI, `transformers serve`), while training stays on this machine."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import cache_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.decoding import Answer, check_decoding
from dpo_workbench.models.embedded import SMOL_HUB_ID
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.models.openai_api import Refused, chat, check_address, open_client, served_names

CONCURRENT = 16  # requests that the server has at one time


@dataclass(frozen=True)
class Server:
    """One model on one server."""

    url: str  # without credentials
    model: str  # the name that the server gives it
    count_tokens: Callable[[str], int] | None = None  # by the tokenizer, if the model was given as a handle


def draw(
    model: Model | str | None,
    prompts: Sequence[str],
    *,
    engine: str | None,
    repetition_penalty: float = 1.0,
    **settings: Any,
) -> tuple[list[list[Answer]], dict[str, str]]:
    """Answers from the model in memory, or from a server: `generate` with one more argument.

    Args:
        model: a handle; with an engine it may also be the name of the served model, or None if only one is served.
        engine: None, or the address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
        prompts, repetition_penalty: as in `generate`.
        settings: `samples`, `temperature`, `max_new_tokens`, `seed` and `on_answers` of `generate`.

    Returns:
        The answers in the order of the prompts, and what a result should say about the server: `engine`, its address,
        and `model`, the served name; empty without an engine.

    Raises:
        WorkbenchError: see `generate`, `connect` and `ask`; or a repetition penalty, which the API does not have.
    """
    if engine is None:
        if model is None or isinstance(model, str):
            raise WorkbenchError(
                f"Without an engine `model` must be a loaded model. Got {model!r}. Load it with `dw.load_model`, or "
                "name a server with engine='http://...'."
            )
        return generate(model, prompts, repetition_penalty=repetition_penalty, **settings), {}
    if repetition_penalty != 1.0:
        raise WorkbenchError(
            f"With an engine `repetition_penalty` must be 1, because the API has none. Got {repetition_penalty}. Run "
            "this arm on a loaded model, without an engine."
        )
    server = connect(engine, model)
    return ask(server, prompts, **settings), {"engine": server.url, "model": server.model}


def connect(engine: str, model: Model | str | None) -> Server:
    """Decide which model of which server answers.

    A name is used as it is. For a handle without an adapter, the server's model with the handle's name, Hub id or
    folder answers. Otherwise the only model of the server does.

    Args:
        engine: the server's address, usually ending in /v1. A key is read from the environment variable OPENAI_API_KEY.
        model: a name, a handle, or None.

    Raises:
        WorkbenchError: a handle with an adapter; an address that is wrong or contains a password; and, unless `model`
            is a name, a server that does not respond or does not make clear which model is meant.
    """
    url = check_address(engine)
    if isinstance(model, str):
        return Server(url, model)
    if model and model.adapter:
        raise WorkbenchError(
            f"A server answers with the weights it serves, not with a handle's adapter. Got {model!r}. Save the "
            "adapter with `model.save(folder)`, serve it under a name (docs/server.md), and pass that name."
        )
    with open_client(url) as client:
        listed = served_names(client)
    known = (model.name, model.source, SMOL_HUB_ID if model.name == "smol" else "") if model else ()
    found = [name for name in known if name in listed] or (listed if len(listed) == 1 else ())
    if not found:
        raise WorkbenchError(
            f"`model` must say which model of {url} should answer. It lists {', '.join(listed) or 'none'}. Pass the "
            "name that it is served by, such as model='owner/name'."
        )
    if model is None:
        return Server(url, found[0])
    if found[0] not in known:
        print(f"{url} answers with {found[0]!r}, its only model, in place of {model.name!r}")
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
    """Sample answers at a server.

    Each prompt is one user message at the chat endpoint, and **the server applies its own chat template** (for `smol`
    that adds a system message; docs/server.md shows how to serve the same template). If the server honors seeds, sample
    k of prompt i has the seed s + i * samples + k.

    Answers are written to a file in the cache folder as they arrive. If the server dies or the call is interrupted, the
    same call with the same settings continues where it stopped.

    Args:
        server: from `connect`.
        prompts, samples, temperature, max_new_tokens, seed, on_answers: as in `generate`.

    Returns:
        `samples` answers for each prompt, in the order of the prompts. `Answer.n_tokens` is the server's `usage`. For a
        reply with several answers, tokens are counted by the handle's tokenizer, or shared out by length of text.

    Raises:
        WorkbenchError: see `check_decoding` and `chat`; or answers cannot be written to the cache folder.
    """
    check_decoding(samples, temperature, max_new_tokens)
    request = {"model": server.model, "temperature": temperature, "max_tokens": max_new_tokens}
    key = json.dumps([server.url, request, samples, seed, list(prompts)])
    path = cache_folder() / "unfinished" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"
    answers = _read_unfinished(path, len(prompts), samples)
    advance = on_answers or (lambda n: None)
    total, n_read = samples * len(prompts), sum(map(len, answers))
    if n_read:
        print(f"continuing: {n_read} of {total} answers are in {path}, from a call that stopped")
        advance(n_read)
    requests = _Requests(server, request, prompts, samples, seed * 1_000_003)
    try:
        _collect(requests, answers, path, advance)
    except WorkbenchError as error:
        n = sum(map(len, answers))
        raise WorkbenchError(f"{error} {n} of {total} answers are saved; the same call asks for the others.") from None
    if samples > 1 and all(len({a.text for a in drawn}) == 1 for drawn in answers):
        warnings.warn(
            f"All {samples} samples of each prompt are equal: {server.url} seems not to sample. `transformers serve` "
            "samples only if the model's generation_config.json has do_sample true (docs/server.md).",
            stacklevel=4,
        )
    return answers


def _collect(requests: _Requests, answers: list[list[Answer]], path: Path, advance: Callable[[int], None]) -> None:
    """Add the missing answers to `answers` and write each to the file as it arrives; delete the file at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write("\n")  # a line that was cut off by a kill must not merge with the next one
            for i, new in requests.replies([len(drawn) for drawn in answers]):
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


def _read_unfinished(path: Path, n_prompts: int, samples: int) -> list[list[Answer]]:
    """The answers that a stopped call wrote down. Lines that are not complete are skipped and asked for again."""
    answers: list[list[Answer]] = [[] for _ in range(n_prompts)]
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line)
            drawn, k, answer = answers[row.pop("prompt")], row.pop("sample"), Answer(**row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue
        if k == len(drawn) < samples:
            drawn.append(answer)
    return answers


@dataclass
class _Requests:
    """The requests of one call of `ask`."""

    server: Server
    request: dict[str, Any]
    prompts: Sequence[str]
    samples: int
    seed: int
    max_choices: int = 2**31  # in one reply; 1 once the server has refused to give several
    stopped: bool = False

    def replies(self, n_have: Sequence[int]) -> Iterator[tuple[int, list[Answer]]]:
        """(prompt, new answers) as they arrive, until every prompt has `samples`.

        After an error no further request is started. Those in progress are waited for, then the error is raised.
        """
        failed: Exception | None = None
        with open_client(self.server.url) as client, ThreadPoolExecutor(CONCURRENT, "ask") as pool:
            waiting = {pool.submit(self._ask, client, i, n) for i, n in enumerate(n_have) if n < self.samples}
            try:
                while waiting:
                    done = next(as_completed(waiting))
                    waiting.remove(done)
                    if done.cancelled():
                        continue
                    try:
                        i, n, reply = done.result()
                    except Exception as error:  # noqa: BLE001 - raised below, after the other replies
                        failed = failed or error
                        self.stopped = True
                        for other in waiting:
                            other.cancel()
                        continue
                    yield i, self._answers(*reply)
                    n += len(reply[0])
                    if n < self.samples and not self.stopped:  # the server gave fewer answers than it was asked for
                        waiting.add(pool.submit(self._ask, client, i, n))
            except BaseException:  # an interrupt, or an error of the caller: do not wait for the server
                client.close()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failed:
            raise failed

    def _ask(self, client: Any, i: int, n_have: int) -> tuple[int, int, tuple[list[str], list[bool], int | None]]:
        """Ask for the missing answers of prompt i; runs in a thread."""
        n = min(self.samples - n_have, self.max_choices)
        seed = (self.seed + i * self.samples + n_have) % 2**31
        try:
            return i, n_have, chat(client, self.prompts[i], n, {**self.request, "seed": seed})
        except Refused:
            if n == 1:
                raise
            self.max_choices = 1  # perhaps the server does not accept a request for several answers
            return self._ask(client, i, n_have)

    def _answers(self, texts: list[str], finished: list[bool], n_tokens: int | None) -> list[Answer]:
        count = self.server.count_tokens
        if n_tokens is not None and len(texts) == 1:
            tokens = [n_tokens]
        elif count is not None:
            tokens = [count(text) + end for text, end in zip(texts, finished, strict=True)]  # and the end token
        elif n_tokens is not None:
            letters = max(1, sum(map(len, texts)))
            tokens = [round(n_tokens * len(text) / letters) for text in texts]
        else:
            raise WorkbenchError(
                f"A reply must say how many tokens it has (usage.completion_tokens). {self.server.url} does not. Pass "
                "`model` as a handle, so that its tokenizer can count."
            )
        return [Answer(*one) for one in zip(texts, tokens, finished, strict=True)]
