"""One request to an OpenAI-compatible server with the package openai, and plain messages for what can go wrong."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from dpo_workbench.common.errors import WorkbenchError

TIMEOUT = 600.0  # seconds that a request may take, including its wait in the server's queue
RETRIES = 3  # after a lost connection, a timeout, or status 408, 409, 429 or 5xx; the pauses grow
_ENDS = {"stop": True, "eos_token": True, "length": False}  # finish_reason -> Answer.finished


class Refused(WorkbenchError):
    """The server rejected the request (status 400 or 422)."""


def check_address(engine: str) -> str:
    """The address without a trailing slash.

    Raises:
        WorkbenchError: not an address, or one with a password or parameters, which would end up in results.
    """
    try:
        parts = urlsplit(engine)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        good = False
    secret = any(sign in str(engine) for sign in "@?#")
    if secret or not good:
        raise WorkbenchError(
            "`engine` must be a server's address, such as http://127.0.0.1:8000/v1, without anything secret in it. Got "
            f"{'one with a password or parameters' if secret else repr(engine)}. A key belongs in the "
            "environment variable OPENAI_API_KEY."
        )
    return engine.rstrip("/")


def open_client(url: str) -> Any:
    """OpenAI's client, which retries by itself and honors Retry-After. Close it after use.

    Raises:
        WorkbenchError: the package openai is missing, or OPENAI_API_KEY cannot be a key.
    """
    openai = _openai()
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"  # most self-hosted servers need none
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise WorkbenchError("OPENAI_API_KEY must be one word of ASCII characters. Got something else. Set it again.")
    timeout = openai.Timeout(TIMEOUT, connect=min(10.0, TIMEOUT))
    return openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=RETRIES)


def served_names(client: Any) -> tuple[str, ...]:
    """The names of the models that the server lists (`transformers serve` lists its cache).

    Raises:
        WorkbenchError: no server, or one without such a list.
    """
    try:
        response = client.models.with_raw_response.list(timeout=min(30.0, TIMEOUT)).http_response
    except _openai().OpenAIError as error:
        raise WorkbenchError(f"{_explain(error, client)} Or pass `model` as the name that it is served by.") from None
    try:
        return tuple(str(model["id"]) for model in response.json()["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _not_the_api("a list of models", response) from None


def chat(client: Any, prompt: str, n: int, request: dict[str, Any]) -> tuple[list[str], list[bool], int | None]:
    """Ask for n answers to one user message.

    Returns:
        The texts (at least one, at most n); whether each is finished; their tokens together, or None if not given.

    Raises:
        Refused: the server rejected the request.
        WorkbenchError: no valid reply after all retries. The message never contains the key.
    """
    openai = _openai()
    messages = [{"role": "user", "content": prompt}]
    several = {"n": n} if n > 1 else {}
    try:
        response = client.chat.completions.with_raw_response.create(messages=messages, **request, **several)
    except UnicodeEncodeError:
        raise WorkbenchError(
            f"A prompt must be valid Unicode. Got half of a surrogate pair in {prompt[:60]!r}. Remove it."
        ) from None
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        raise Refused(_explain(error, client, prompt) + _listed(client)) from None
    except openai.OpenAIError as error:
        names = _listed(client) if isinstance(error, openai.NotFoundError) else ""
        raise WorkbenchError(_explain(error, client, prompt) + names) from None
    return _read(response.http_response, n)


def _read(response: Any, n: int) -> tuple[list[str], list[bool], int | None]:
    try:
        data = response.json()
        choices = data["choices"][:n]
        texts = [choice["message"]["content"] for choice in choices]
        finished = [_ENDS[choice["finish_reason"]] for choice in choices]
        n_tokens = (data.get("usage") or {}).get("completion_tokens")
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError("no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _not_the_api("choices, each with a text and with finish_reason stop or length", response) from None
    return texts, finished, n_tokens if type(n_tokens) is int else None


def _not_the_api(what: str, response: Any) -> WorkbenchError:
    return WorkbenchError(
        f"{response.url} must reply with {what}. Got {_clean(response.text)!r}. Check that the address is that of an "
        "OpenAI-compatible API (usually ending in /v1), and that the server leaves tool calls and thinking in the text."
    )


def _listed(client: Any) -> str:
    try:
        return f" It lists the models: {', '.join(served_names(client)) or 'none'}."
    except WorkbenchError:
        return ""  # the first error matters more


def _explain(error: Any, client: Any, prompt: str = "") -> str:
    """What a failed request means, and what to do about it."""
    openai, url = _openai(), str(client.base_url).rstrip("/")
    to = f" to the prompt {prompt[:40]!r}" if prompt else ""
    if isinstance(error, openai.APITimeoutError):
        return (
            f"The server at {url} must answer in {TIMEOUT:g} s. It did not, {RETRIES + 1} times in a row{to}. Look at "
            "its log; send fewer requests at a time, or wait longer (CONCURRENT and TIMEOUT, docs/server.md)."
        )
    if not isinstance(error, openai.APIStatusError):
        return (
            f"A server must listen at {url}. Got no answer{to} ({_clean(str(error.__cause__ or error))}). Start one, "
            "such as `vllm serve MODEL` or `transformers serve MODEL` (docs/server.md), or check the address."
        )
    advice = {
        400: "Check the model's name and the length of the prompt.",
        401: "Set OPENAI_API_KEY to its key.",
        403: "Set OPENAI_API_KEY to its key.",
        404: "Check the model's name, and the address, which usually ends in /v1.",
        429: "Send fewer requests at a time (CONCURRENT, docs/server.md), or try later.",
    }
    said = _clean(f"{error.status_code} {error.response.text}")
    return f"The server at {url} must answer. It says{to}: {said}. {advice.get(error.status_code, 'Look at its log.')}"


def _clean(text: str) -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    text = " ".join(text.split())
    return (text.replace(key, "***") if key else text)[:300].rstrip(".")


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise WorkbenchError(
            "To sample at a server the package openai must be installed. It is not. Run "
            '`pip install "dpo-workbench[server]"`.'
        ) from error
    return openai
