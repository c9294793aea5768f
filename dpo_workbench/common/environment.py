"""Where the workbench runs: data and cache folders, device, dtype and its reason, peak memory."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

IN_COLAB = "google.colab" in sys.modules
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of a CPU, the widest first


def data_folder() -> Path:
    """The built-in data: `_data` in an installed wheel, `data` at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_data"
    return inside if inside.is_dir() else package.parent / "data"


def cache_folder() -> Path:
    """Where converted models are kept: `DPO_WORKBENCH_CACHE`, or `dpo_workbench` in the user's cache folder."""
    given = os.environ.get("DPO_WORKBENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "dpo_workbench"


def choose_device(wanted: str | None = None) -> Any:
    """The device asked for, or a GPU where there is one, or the CPU."""
    import torch

    return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtype(device: Any) -> tuple[Any, str]:
    """The dtype for a model of more than a few million parameters, and why, in words to print.

    On a GPU by its compute capability, not by `torch.cuda.is_bf16_supported()`, which says yes on a T4 that only
    emulates it. On a CPU by whether it has bf16 instructions (AMX or AVX-512 BF16): without them bf16 is slower.
    """
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bf16"
        if major == 7:
            return torch.float16, f"compute capability {major}.{minor} has fp16, but no bf16"
        return torch.float32, f"compute capability {major}.{minor} has no fast fp16 or bf16"
    if device.type == "cpu":
        flags = _cpu_flags()
        found = next((f for f in ("amx_bf16", "avx512_bf16") if f in flags), None)
        if found:
            return torch.bfloat16, f"this CPU has {found}"
        return torch.float32, "this CPU has no bf16 instructions"
    return torch.float32, f"the safe choice on {device.type}"


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((x for x in text.splitlines() if x.startswith("flags")), "")
    return set(line.split())


def peak_memory_gib() -> float:
    """The most memory this process has held, in GiB; on a GPU machine the GPU's. 0.0 where it cannot be read."""
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
    """What a results file says of the machine: system, processor, its vector instructions, cores in use, versions."""
    import importlib.metadata as metadata

    versions, widest = {}, next((f for f in INSTRUCTIONS if f in _cpu_flags()), None)
    for name in ("torch", "transformers", "peft", "numba"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        **({"instructions": widest} if widest else {}),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    return next((x.split(":", 1)[1].strip() for x in text.splitlines() if x.startswith("model name")), "unknown")


def keep_freed_memory() -> None:
    """Tell glibc to reuse the memory of freed tensors instead of handing it back to the system.

    By default each large tensor is mapped, zeroed page by page, and unmapped again; on a virtual machine that costs
    more than the arithmetic on it. Does nothing on other systems. And let oneDNN keep the kernels of 128 shapes, not of
    1,024: packs and batches come in ever new shapes, and their kernels filled 0.4 GiB in the demo with `smol`. A
    micro-batch in bf16 needs some 50.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    mallopt = _libc("mallopt")
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 * 2**20)  # larger ones go back at once, or the heap would grow in holes
        mallopt(m_trim_threshold, 2**30)


def release_freed_memory() -> None:
    """Hand what `keep_freed_memory` kept back to the system, so that the peaks of two stages do not add up."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _libc(name: str) -> Any:
    """A function of the C library, or None where there is none such (macOS, Windows, musl)."""
    if sys.platform != "linux":
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), name, None)
