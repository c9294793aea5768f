"""The Hugging Face Hub: names of repositories, cards (README.md with a YAML header), and the upload of a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import escape, visible

ADVICE = {  # by the status of the Hub's answer
    401: "Log in with `hf auth login`, or set the environment variable HF_TOKEN to a token with write access.",
    409: "A repository of this name exists. Choose another name, or delete it on the Hub.",
    403: "Use a token with write access to this owner's repositories, or another owner.",
}

# What Markdown gives a meaning, in any place or at the start of a line; `#` is also a part of entities.
_MARKS = re.compile(r"[\\`*\[\]{}|~]|(?<!\w)_|_(?!\w)|(?<!&)#|^[-+=]|^\d+[.)](?=\s|$)")


def check_repo_id(repo_id: str) -> None:
    """Raise WorkbenchError if it is not `owner/name`."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(repo_id), re.ASCII):
        raise WorkbenchError(f"A repository on the Hub must be owner/name. Got {repo_id!r}. Write it like me/my-model.")


def upload(folder: Path, repo_id: str, *, private: bool, kind: str = "model") -> str:
    """Create a new repository, upload the files of the folder in one commit, and return its address.

    The token is that of `hf auth login` or HF_TOKEN. `kind` is `model` or `dataset`.

    Raises:
        WorkbenchError: the name, the token or the network is wrong, or there is such a repository already.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    api = HfApi()
    try:
        address = str(api.create_repo(repo_id, private=private, repo_type=kind))
        api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type=kind, commit_message="Upload by dpo_workbench")
    except Exception as error:  # the Hub's client raises many kinds of errors, from no network to a wrong token
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        advice = ADVICE.get(status or 0, "Check the network, and run it again.")
        raise WorkbenchError(f"The Hub must accept {repo_id}. It did not: {why} {advice}") from error
    return address


def card(header: Mapping[str, Any], body: str) -> str:
    """The text of a README.md: a YAML header, which the Hub reads, and a page."""
    import yaml

    page = re.sub(r"\n{3,}", "\n\n", body.strip())
    return f"---\n{yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)}---\n\n{page}\n"


def plain(text: Any) -> str:
    """One line of Markdown that shows `text` as it is, apart from the folders of paths on this machine.

    Characters that Markdown gives a meaning are written as entities. Names of models, tasks and failure classes pass
    through here.
    """
    line = escape(without_folders(" ".join(str(text).split()))).replace("&#x27;", "'")
    return _MARKS.sub(lambda match: "".join(f"&#{ord(c)};" for c in match[0]), line)


def code_block(text: Any) -> str:
    """A Markdown block that shows the lines of `text` as they are, again without folders."""
    return "\n".join(f"    {visible(without_folders(line))}" for line in str(text).splitlines())


def without_folders(text: str) -> str:
    """`text` with the last part of each absolute path only: others must not see where files are on this machine."""
    return re.sub(r"(?<![\w/:.])(?:file://|~|[A-Za-z]:)?[/\\](?:[^\s/\\,;:)]+[/\\])*(?=[^\s/\\])", "", text)
