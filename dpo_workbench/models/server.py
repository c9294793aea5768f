"""Answers from an OpenAI-compatible server (vLLM, TGI, `transformers serve`), while training stays on this machine."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from multiprocessing.pool import ThreadPool
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.decoding import Answer, check_decoding
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.messages import Prompt, messages_of

CONCURRENT = 32  # requests that the server has at one time
TIMEOUT = 600.0  # seconds that a request may take, including its wait in the server's queue
RETRIES = 3  # after a lost connection, a timeout, or status 408, 409, 429 or 5xx
PAUSE = 1.0  # seconds before the first retry, then 4 and 16 times as long
_ENDS = {"stop": True, "eos_token": True, "length": False}  # finish_reason -> Answer.finished
_ADVICE = {
    400: "Check the model's name and the length of the prompt.",
    401: "Set OPENAI_API_KEY to its key.",
    403: "Set OPENAI_API_KEY to its key.",
    404: "Check the model's name, and the address, which usually ends in /v1.",
    429: "Send fewer requests at a time (CONCURRENT, docs/server.md), or try later.",
}


@dataclass
class Tally:
    """What requests cost, and which of them failed."""

    usage: list[dict[str, Any]] = field(default_factory=list)  # of each answer, as the server counts it
    failures: list[str] = field(default_factory=list)  # messages

    def tokens(self, kind: str) -> int:
        """The sum of `prompt_tokens` or `completion_tokens`. What the server doesn't count is 0."""
        return sum(count for usage in self.usage if isinstance(count := usage.get(kind), int))


def draw(
    model: Model | str | None,
    prompts: Sequence[Prompt],
    *,
    engine: str | None,
    template: dict[str, Any] | None = None,
    repetition_penalty: float = 1.0,
    **settings: Any,
) -> tuple[list[list[Answer]], dict[str, Any]]:
    """Answers of `generate`, or with an engine of `ask`, and what a result should say about the server.

    Args:
        model: a handle; with an engine the name of the served model, or None if only one is served.
        engine: None, or the address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
        template: with an engine, arguments of the served model's chat template; a handle has its own.
    """
    if engine is None:
        if model is None or isinstance(model, str) or template:
            raise WorkbenchError(
                f"Without an engine `model` must be a loaded model, with its own template arguments. Got {model!r} and "
                f"template={template}. Use `dw.load_model(name, template={{...}})`, or engine='http://...'."
            )
        return generate(model, prompts, repetition_penalty=repetition_penalty, **settings), {}
    if isinstance(model, Model) or repetition_penalty != 1.0:
        raise WorkbenchError(
            f"With an engine `model` must be the name that the server gives it, and `repetition_penalty` 1, because "
            f"the API has none. Got {model!r} and {repetition_penalty}. To use an adapter, save it with "
            "`model.save(folder)` and serve it under a name (docs/server.md)."
        )
    url, name = connect(engine, model)
    told = {"engine": url, "model": name} | ({"template": template} if template else {})
    return ask(url, name, prompts, template=template, **settings), told


def connect(engine: str, model: str | None) -> tuple[str, str]:
    """The server's address and the name of its model that is meant. OPENAI_API_KEY may hold a key.

    Raises:
        WorkbenchError: the address is wrong or secret, no server is there, or none of its several models is named.
    """
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?(/[^\s?#@]*)?", engine):
        shown = "one with a password or parameters" if any(sign in engine for sign in "@?#") else repr(engine)
        raise WorkbenchError(
            "`engine` must be a server's address, such as http://127.0.0.1:8000/v1, without anything secret in it. Got "
            f"{shown}. A key belongs in the environment variable OPENAI_API_KEY."
        )
    url = engine.rstrip("/")
    names = _served_names(url)  # also for a model given by name, to notice at once that no server is there
    if model is None and len(names) != 1:
        raise WorkbenchError(
            f"`model` must be the name that the server gives it. {url} lists {', '.join(names) or 'none'}. Got no name."
        )
    return url, model or names[0]


def ask(
    url: str,
    model: str,
    prompts: Sequence[Prompt],
    *,
    template: dict[str, Any] | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    on_answers: Callable[[int], None] | None = None,
    tally: Tally | None = None,
) -> list[list[Answer]]:
    """Sample answers at a server, one request for each.

    Each prompt goes to the chat endpoint as messages, and **the server applies its own chat template** (for `smol`
    that adds a system message; docs/server.md shows how to serve the same template). Each sample has its own seed.
    Arguments and result are those of `generate`. `Answer.n_tokens` is the server's `usage`. With a `tally`, the answer
    to a request that failed is an empty one, and its message is counted there.

    Raises:
        WorkbenchError: see `check_decoding`; or a request failed, also when it was repeated.
    """
    check_decoding(samples, temperature, max_new_tokens)
    messages = [messages_of(prompt) for prompt in prompts for _ in range(samples)]

    def one(k: int) -> tuple[int, Answer]:
        settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
        settings["seed"] = (seed * 1_000_003 + k) % 2**31
        if template:
            settings["chat_template_kwargs"] = template
        try:
            return k, _chat(url, {"model": model, "messages": messages[k], **settings}, tally)
        except WorkbenchError as error:
            if tally is None:
                raise
            tally.failures.append(str(error))
            return k, Answer("", 0, False)

    drawn: dict[int, Answer] = {}
    # The threads of a ThreadPool are daemons: after an error or Ctrl-C nothing waits for the requests in progress.
    with ThreadPool(CONCURRENT) as pool:
        for k, answer in pool.imap_unordered(one, range(len(messages))):
            drawn[k] = answer
            if on_answers:
                on_answers(1)
    return [[drawn[i + k] for k in range(samples)] for i in range(0, len(messages), samples)]


def _chat(url: str, request: dict[str, Any], tally: Tally | None) -> Answer:
    """One answer from the chat endpoint, after up to `RETRIES` failures that may pass."""
    for attempt in range(RETRIES + 1):
        time.sleep(PAUSE * 4 ** (attempt - 1) if attempt else 0)
        try:
            status, text = _send(f"{url}/chat/completions", request, TIMEOUT)
        except (OSError, HTTPException) as error:
            problem, advice = f"{type(error).__name__}: {error}", "Look at its log, or wait longer (docs/server.md)."
            continue
        if status == 200:
            return _answer(url, text, tally)
        problem, advice = f"{status} {text}", _ADVICE.get(status, "Look at its log.")
        if status < 500 and status not in (408, 409, 429):
            break
    prompt = request["messages"][-1]["content"]
    raise WorkbenchError(f"The server at {url} must answer. To {prompt[:40]!r} it says: {_clean(problem)}. {advice}")


def _answer(url: str, text: str, tally: Tally | None) -> Answer:
    try:
        reply = json.loads(text)
        choice, n_tokens = reply["choices"][0], reply["usage"]["completion_tokens"]
        content, finished = choice["message"]["content"], _ENDS[choice["finish_reason"]]
        if not isinstance(content, str) or type(n_tokens) is not int:
            raise TypeError("no text, or no number of tokens")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise WorkbenchError(
            f"{url} must reply with choices, each with a text and with finish_reason stop or length, and with "
            f"usage.completion_tokens. Got {_clean(text)!r}. Check that the address is that of an OpenAI-compatible "
            "API (usually ending in /v1), and that the server leaves tool calls and thinking in the text."
        ) from None
    if tally is not None:
        tally.usage.append(reply["usage"])
    return Answer(content, n_tokens, finished)


def _served_names(url: str) -> list[str]:
    """The names of the models that the server lists (`transformers serve` lists its cache); empty without a list."""
    try:
        _, text = _send(f"{url}/models", None, timeout=10.0)
    except (OSError, HTTPException) as error:
        raise WorkbenchError(
            f"A server must listen at {url}. Got {_clean(str(error))}. Start one, or check it (docs/server.md)."
        ) from None
    try:
        return [str(model["id"]) for model in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _send(url: str, body: dict[str, Any] | None, timeout: float) -> tuple[int, str]:
    """The status and the text of the reply to one request; a GET request without a body."""
    request = Request(url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    if key := _key():
        request.add_unredirected_header("Authorization", f"Bearer {key}")  # to no other server than the named one
    try:
        with urlopen(request, timeout=timeout) as reply:
            return reply.status, reply.read().decode(errors="replace")
    except HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def _key() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()  # most self-hosted servers need none
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise WorkbenchError("OPENAI_API_KEY must be one word of ASCII characters. Got something else. Set it again.")
    return key


def _clean(text: str) -> str:
    """The beginning of a text on one line, without the key."""
    key, text = os.environ.get("OPENAI_API_KEY", "").strip(), " ".join(text.split())
    return (text.replace(key, "***") if key else text)[:300].rstrip(".")
