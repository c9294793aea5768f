"""The machine: data and cache folders, device, dtype, peak memory, and a description for results files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # CPU flags with which bf16 is faster than fp32


def data_folder() -> Path:
    """The folder of the built-in data: `_data` in an installed wheel, `data` at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_data"
    return inside if inside.is_dir() else package.parent / "data"


def cache_folder() -> Path:
    """The folder of converted models: `DPO_WORKBENCH_CACHE`, or `dpo_workbench` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DPO_WORKBENCH_CACHE") or Path(base) / "dpo_workbench")


def choose_device(wanted: str | None = None) -> Any:
    """The wanted torch device; by default a GPU if there is one, else the CPU."""
    import torch

    return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtype(device: Any) -> Any:
    """The torch dtype for a model on this device.

    On a GPU the compute capability decides, because `torch.cuda.is_bf16_supported()` is also true on a T4, which only
    emulates bf16. On a CPU without bf16 instructions, bf16 is slower than fp32.
    """
    import torch

    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
    has_bf16 = device.type == "cpu" and not BF16_FLAGS.isdisjoint(_cpu_info("flags").split())
    return torch.bfloat16 if has_bf16 else torch.float32


def peak_memory_gib() -> float:
    """The most memory that this process has used, in GiB: of the GPU if there is one; 0.0 if it can't be read."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def describe() -> dict[str, Any]:
    """The machine, for a results file: system, processor, usable cores, versions."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _cpu_info("model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def _cpu_info(name: str) -> str:
    """A line of /proc/cpuinfo; empty on other systems than Linux."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
