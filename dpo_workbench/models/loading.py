"""`load_model` and `Model`: a causal LM with its tokenizer, seen through one LoRA adapter or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dpo_workbench.common.environment import choose_device, choose_dtype, data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder
from dpo_workbench.common.progress import quiet
from dpo_workbench.models import adapter as lora
from dpo_workbench.models.attention import flex_attention, pack_attention
from dpo_workbench.models.chat import Chat
from dpo_workbench.models.files import SMOL_HUB_ID, load_chat, max_positions, read_weights


@dataclass(eq=False)
class _Adapter:
    """An adapter of the network. Once no handle refers to it, the next call of `with_new_adapter` deletes it."""

    name: str


@dataclass
class _Shared:
    """The one network in memory that all handles on it share, bare or wrapped by PEFT."""

    network: nn.Module
    pack_attention: str  # "sdpa" or "flex_attention"
    fingerprint: str | None = None
    n_adapters: int = 0  # made so far
    adapters: WeakSet[_Adapter] = field(default_factory=WeakSet)  # those that a handle refers to


@dataclass(frozen=True)
class Model:
    """A handle on a causal LM and its tokenizer, with one LoRA adapter or none.

    Handles on the same network share the base weights. Training returns a new handle and leaves the old one as it was,
    so `model` and `run.model` can be compared at any time.
    """

    name: str
    chat: Chat  # the tokenizer with its chat template: prompts and answers as token ids
    source: str  # folder or Hub id that the base weights came from
    _shared: _Shared
    _adapter: _Adapter | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    @property
    def adapter(self) -> str | None:
        """The name of this handle's adapter in the network."""
        return self._adapter.name if self._adapter else None

    @property
    def network(self) -> nn.Module:
        """The shared network, with whichever adapter was used last. `active()` makes sure that it is this handle's."""
        return self._shared.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self._causal().get_input_embeddings().weight.dtype

    @property
    def quantize(self) -> str | None:
        """What `load_model` takes for weights like these: "4bit", or None if they are not quantized."""
        return "4bit" if getattr(self._causal(), "is_loaded_in_4bit", False) else None

    @property
    def max_positions(self) -> int:
        """How many tokens a prompt with one answer may have."""
        return max_positions(self._causal().config)

    @property
    def uses_flex_attention(self) -> bool:
        """True if packs are computed by FlexAttention (GPUs from compute capability 8.0), False if by SDPA."""
        return self._shared.pack_attention == "flex_attention"

    def _causal(self) -> Any:
        return lora.causal_lm(self.network)

    @contextmanager
    def active(self, *, trainable: bool = False, checkpointing: bool = False) -> Iterator[nn.Module]:
        """Inside, the network computes what this handle stands for, ready for packs.

        Args:
            trainable: only this handle's adapter requires gradients; otherwise nothing does.
            checkpointing: decoder layers keep only their inputs for the backward pass (activation checkpointing).
        """
        with (
            flex_attention(self._causal()) if self.uses_flex_attention else nullcontext(),
            lora.activation_checkpointing(self.network) if checkpointing else nullcontext(),
            lora.only_adapter(self.network, self.adapter, trainable) as network,
        ):
            yield network

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """Inside, a network for generation: the adapter is added to the base weights, unless these are quantized."""
        with lora.only_adapter(self.network, self.adapter), lora.merged_weights(self.network, self.adapter) as merged:
            yield merged

    def with_new_adapter(self, *, rank: int = 16, alpha: int = 32, seed: int = 0) -> Model:
        """A handle with its own adapter: a copy of this handle's adapter, or a new one that changes nothing yet."""
        shared = self._shared
        shared.n_adapters += 1
        name = f"adapter{shared.n_adapters}"
        if self.adapter is not None:
            config = shared.network.peft_config[self.adapter]
            rank, alpha = config.r, config.lora_alpha
        network = shared.network = lora.add_adapter(shared.network, name, rank, alpha, seed)
        adapter = _Adapter(name)
        shared.adapters.add(adapter)
        made = replace(self, _adapter=adapter)
        if self.adapter is not None:
            made.set_adapter_tensors(self.adapter_tensors())
        network.set_adapter(name, inference_mode=True)  # PEFT warns if it has to delete the active adapter
        for unused in set(network.peft_config) - {adapter.name for adapter in shared.adapters}:
            network.delete_adapter(unused)
        return made

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of this handle's adapter weights on the CPU, by PEFT's names; empty without an adapter."""
        if self.adapter is None:
            return {}
        state = get_peft_model_state_dict(self.network, adapter_name=self.adapter, save_embedding_layers=False)
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}

    def set_adapter_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Overwrite this handle's adapter weights by those of `adapter_tensors`.

        Raises:
            WorkbenchError: the network has no place for a weight, or its size differs, or one is missing.
        """
        name, own = self._require_adapter(), self.adapter_tensors()
        same = {key for key in own.keys() & tensors.keys() if own[key].shape == tensors[key].shape}
        if wrong := sorted({*own, *tensors} - same):
            raise WorkbenchError(
                f"An adapter's weights must fit the model. Got {len(wrong)} missing, unknown or of another size, "
                f"such as {wrong[0]!r}. Load it on the model it was trained on."
            )
        set_peft_model_state_dict(self.network, tensors, adapter_name=name)

    def _require_adapter(self) -> str:
        if self.adapter is None:
            raise WorkbenchError(
                f"This needs an adapter. {self.name!r} has none. Train one, or load one with `adapter=...`."
            )
        return self.adapter

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable tensors of this handle's adapter, in a fixed order."""
        mark = f".{self._require_adapter()}."
        return [p for n, p in self.network.named_parameters() if mark in n]

    def fingerprint(self) -> str:
        """Hash of base weights, adapter and dtype: equal only for models that compute the same thing.

        Weights are copied to host memory one at a time. Those that were quantized on another kind of device differ.
        """
        if self._shared.fingerprint is None:
            digest = hashlib.sha256()
            weights = {k.replace(".base_layer.", "."): v for k, v in self._causal().state_dict().items()}
            for key, value in sorted(weights.items()):
                if "lora_" not in key:
                    digest.update(key.encode())
                    digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
            self._shared.fingerprint = digest.hexdigest()
        digest = hashlib.sha256(self._shared.fingerprint.encode())
        if self.adapter is not None:
            config: Any = self.network.peft_config[self.adapter]  # type: ignore[index, union-attr]
            digest.update(f"{config.lora_alpha / config.r}".encode())
        for key, value in sorted(self.adapter_tensors().items()):
            digest.update(key.encode() + value.float().numpy().tobytes())
        return digest.hexdigest()

    def check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raise if a token has no embedding; CUDA would end the process."""
        n_known = self._causal().get_input_embeddings().weight.shape[0]
        highest = max(map(max, filter(None, sequences)), default=0)
        if highest >= n_known:
            raise WorkbenchError(
                f"Every token must have an embedding. Got {self.tokenizer.convert_ids_to_tokens(highest)!r} with id "
                f"{highest}, and {n_known} embeddings. Take it out of the texts, or call `resize_token_embeddings` in "
                "transformers, train the new embeddings and save the model."
            )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write this handle's adapter as a PEFT folder, which `load_model(name, adapter=folder)` reads.

        Args:
            folder: where to write; an existing folder is replaced in one step.
            dtype: of the weights in the file; None keeps fp32, bf16 halves the size.
        """
        name = self._require_adapter()
        config = self.network.peft_config[name].to_dict()  # type: ignore[index, union-attr, operator]
        config |= {"base_model_name_or_path": self._public_source(), "inference_mode": True}
        with replace_folder(Path(folder)) as fresh:
            tensors = {k: v.to(dtype or v.dtype) for k, v in self.adapter_tensors().items()}
            record = {lora.BASE: json.dumps(lora.base_record(self.network))}  # one entry: safetensors shuffles several
            save_file(tensors, fresh / "adapter_model.safetensors", record)
            text = json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else v.item(), indent=1)
            (fresh / "adapter_config.json").write_text(text, encoding="utf-8")
        return Path(folder)

    def _public_source(self) -> str:
        """The source, or for nano and smol, which are loaded from folders of this machine, their public names."""
        return {"nano": "nano", "smol": SMOL_HUB_ID}.get(self.name, self.source)

    def __repr__(self) -> str:
        seen = f"adapter {self.adapter}" if self.adapter else "no adapter"
        how = f"{'4-bit weights, ' if self.quantize else ''}{str(self.dtype)[6:]} on {self.device}"
        return f"Model({self.name}, {seen}, {how})"


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    template: dict[str, Any] | None = None,
) -> Model:
    """Load a causal LM, weight by weight straight to the device.

    Args:
        name: `nano` (ships with the package, no network), `smol` (SmolLM2-135M-Instruct), a Hub id, or a folder with
            safetensors.
        adapter: None, a folder with a LoRA adapter, or the name of one that ships with the package (`receipts`: after
            supervised fine-tuning on that task).
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        dtype: None takes bf16 or fp16 where the device computes fast in them, else fp32.
        quantize: "4bit" stores the weights of linear layers as NF4 with double quantization (QLoRA, arXiv 2305.14314)
            and computes in `dtype`. Adapters and embeddings are not quantized. A model that was saved by bitsandbytes
            in 4 bits is loaded as it is.
        template: arguments of the model's chat template, such as {"enable_thinking": False} for Qwen3. A model without
            a template has one argument: `join`, the text between prompt and answer, such as a newline.

    Raises:
        WorkbenchError: the model cannot be found or read; the message names other ways to get a model.
    """
    name = str(name)
    if quantize not in (None, "4bit"):
        raise WorkbenchError(f'`quantize` must be "4bit" or None. Got {quantize!r}. For 8 bits there is no support.')
    if quiet():
        transformers_logging.disable_progress_bar()
    where = choose_device(device)
    dtype = dtype or (torch.float32 if name == "nano" else choose_dtype(where))
    chat, config = load_chat(name, template, weights=True)
    network = read_weights(name, config, dtype, where, quantize)
    shared = _Shared(network, pack_attention(network, where))
    model = Model(name, chat, config.name_or_path, shared)
    return load_adapter(model, adapter) if adapter is not None else model


def load_adapter(model: Model, adapter: str | Path) -> Model:
    """A handle on `model` with a saved adapter: a folder, or the name of one that ships with the package."""
    if not (folder := Path(adapter)).is_dir():
        prefix, root = f"{model.name}-", data_folder() / "adapters"
        shipped = {p.name.removeprefix(prefix): p for p in sorted(root.glob("*")) if p.name.startswith(prefix)}
        if str(adapter) not in shipped:
            raise WorkbenchError(
                f"`adapter` must be a folder, or one of those shipped for {model.name!r}: "
                f"{', '.join(shipped) or 'none'}. Got {str(adapter)!r}."
            )
        folder = shipped[str(adapter)]
    tensors, config, base = lora.read_adapter(folder)
    trained_on = config.get("base_model_name_or_path")
    if base and (differ := lora.base_differences(base, lora.base_record(model.network))):
        raise WorkbenchError(
            f"An adapter must be loaded on the model that it was trained on. {folder} was trained on {trained_on!r}, "
            f"from which {model.name!r} differs in {len(differ)} places, such as {differ[0]}. Load {trained_on!r} with "
            f"this adapter, or train a new adapter on {model.name!r}."
        )
    if not base and trained_on not in (None, model.name, model._public_source()):
        print(f"{folder} has no record of its base to check: it names {trained_on!r}, and this is {model.name!r}")
    handle = replace(model, _adapter=None).with_new_adapter(rank=config["r"], alpha=config["lora_alpha"])
    new: Any = handle.network.peft_config[handle.adapter]  # type: ignore[index, union-attr]
    for key in ("rank_pattern", "alpha_pattern"):  # PEFT itself sets them for some fused layers
        if (config.get(key) or {}) != (getattr(new, key) or {}):
            raise lora.not_plain(f"{key}={config.get(key)!r}", folder)
    # An adapter may cover only some of the layers. On the others the new adapter changes nothing.
    handle.set_adapter_tensors(handle.adapter_tensors() | {k: v.float() for k, v in tensors.items()})
    return handle
