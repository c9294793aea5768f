"""Publish a trained adapter on the Hugging Face Hub, with a model card made from the records of its run.

`save_run` writes the records, and `publish` reads nothing else. So a run in memory and a run folder give the same card,
and the base model need not be loaded.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpo_workbench import __version__
from dpo_workbench.common.environment import describe
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import check_new_folder, replace_folder, write_json, write_text
from dpo_workbench.common.hub import card, check_repo_id, code_block, plain, upload
from dpo_workbench.models.adapter import read_adapter
from dpo_workbench.models.loading import Model

RECORDS = "training.json"
NAMES = ("history", "probes", "best_step", "finished", "data")  # of a `Run`


def save_run(folder: Path, model: Model, records: dict[str, Any]) -> Path:
    """Write adapter, tokenizer and records of a run into its folder. See `Run.save`."""
    model.save(folder / "adapter")
    with replace_folder(folder / "tokenizer") as fresh:
        model.tokenizer.save_pretrained(fresh)
        if model.chat.arguments:  # as defaults of the template, which a caller can change
            write_text(fresh / "chat_template.jinja", model.chat.template)
    chat = {**model.chat.settings, "has_template": bool(model.tokenizer.chat_template)}
    versions = {name: v for name, v in describe().items() if name in ("python", "torch", "transformers", "peft")}
    records |= {"chat": chat, "versions": {"dpo_workbench": __version__, **versions}}
    records["weights"] = f"{model.quantize} {str(model.dtype)[6:]}".removeprefix("None ")
    write_json(folder / RECORDS, records)
    return folder


def publish(
    run_folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    verdict: Any = None,
    license: str = "unknown",
    out: str | Path | None = None,
) -> str:
    """Upload a run's adapter, its tokenizer with the template as used, and a model card; returns the address.

    Nothing is uploaded before the files are complete and checked.

    Args:
        run_folder: of `dpo-workbench train` or `demo`, or one that `run.save` wrote.
        repo_id: owner/name of a new repository.
        private: only you and those you allow can see it.
        verdict: of `dw.verdict`. By default the one in the run folder's results.json, if there is one.
        license: as the Hub names it, such as `apache-2.0`.
        out: write the files into this new folder, return its path, and upload nothing. Uploads take the token of
            `hf auth login` or HF_TOKEN.

    Raises:
        WorkbenchError: a name is not owner/name, the run is not finished, a file is missing or damaged, the base model
            is a folder, which others don't have, or the Hub refuses the upload (see `upload`).
    """
    check_repo_id(repo_id)
    folder, records = read_record(run_folder, RECORDS, *NAMES, "config", "chat", "versions", "weights")
    if not records["finished"]:
        raise WorkbenchError(f"Only a finished run is published. {folder} was interrupted. Run its command again.")
    adapter, settings, _ = read_adapter(folder / "adapter")
    if broken := [name for name, tensor in adapter.items() if not tensor.isfinite().all()]:
        raise WorkbenchError(f"A published adapter must be finite. {broken[0]} in {folder} is not. Train it again.")
    base = str(settings.get("base_model_name_or_path"))
    if base != "nano" and (Path(base).is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)):
        raise WorkbenchError(
            f"The base model must be one that others can load. Got the folder {base}. Upload it to the Hub, and write "
            f"its name there as base_model_name_or_path into {folder / 'adapter' / 'adapter_config.json'}."
        )
    found = verdict and {"text": str(verdict), "numbers": verdict.numbers}
    if not found and (Path(run_folder) / "results.json").is_file():
        found = read_record(run_folder, "results.json", "verdict")[1]["verdict"]
    text = _card(base, repo_id, license, {**records, "verdict": found or {}, "rank": settings["r"]})
    with TemporaryDirectory() as scratch:
        made = Path(out or Path(scratch) / "model")
        check_new_folder(made)
        with replace_folder(made) as fresh:
            for part in ("tokenizer", "adapter"):
                shutil.copytree(folder / part, fresh, dirs_exist_ok=True)
            write_text(fresh / "README.md", text)
        return str(made) if out else upload(made, repo_id, private=private)


def read_record(run_folder: str | Path, name: str, *keys: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a run (inside that of a demo), and what its JSON file `name` holds, which must have these keys."""
    root = Path(run_folder)
    inside = (root / arm for arm in ("dpo", "dpo+nll"))
    folder = next((path for path in inside if (path / name).is_file()), root)
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        return folder, found | {key: found[key] for key in keys}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"A run folder must hold a complete {name}. Got {folder} ({type(error).__name__}: {error}). "
            "`dpo-workbench train` and `demo` write it: let the run finish, or run it again."
        ) from error


def _card(base: str, repo_id: str, license: str, facts: dict[str, Any]) -> str:
    """The model card. All values pass through `plain`, apart from names of repositories, which are checked."""
    import jinja2
    from markupsafe import Markup

    def show(value: Any) -> Any:
        return value if isinstance(value, Markup) else plain(value)

    environment = jinja2.Environment(finalize=show, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = lambda text: Markup(code_block(text))
    template = environment.from_string(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))
    header: dict[str, Any] = {"base_model": base} if base != "nano" else {}  # the Hub has no model `nano`
    header |= {"library_name": "peft", "pipeline_tag": "text-generation", "license": license}
    header["tags"] = ["dpo", "lora", "dpo-workbench"]
    return card(header, template.render(facts, base=Markup(base), repo_id=Markup(repo_id), license=license))
