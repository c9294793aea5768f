"""Reading a model's weights, in 4 bits if asked, straight to the device."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.files import readable


def read_weights(name: str, config: Any, dtype: torch.dtype, where: torch.device, quantize: str | None) -> Any:
    """The network without dropout, read weight by weight straight to the device `where`.

    Args:
        name, dtype, quantize: as for `load_model`.
        config: of `load_chat`.

    Raises:
        WorkbenchError: the weights cannot be read or have no room; the message says what to do.
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
