"""The loops of `loops` as object code on the disk, which llvmlite loads: Numba is needed once for a machine.

A process that imports Numba and reads its cache takes half a second and 50 MB more.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding

from dpo_workbench.common.environment import cache_folder

OPENMP = ("omp_get_thread_num", "omp_get_num_threads")
# what Numba would call to raise an error; the loops raise none
PYTHON = (
    "PyErr_Clear", "PyErr_SetNone", "PyErr_SetString", "PyErr_WriteUnraisable", "PyExc_StopIteration",
    "PyExc_SystemError", "PyUnicode_FromString", "Py_DecRef",
)  # fmt: skip
C = ("sqrtf",)
NUMBA = ("NRT_MemInfo_call_dtor", "numba_gil_ensure", "numba_gil_release")
DIGEST = hashlib.sha256().digest_size
_loaded: list[Any] = []  # engines and Numba's functions, which own the code


def load(bf16: bool, openmp: ctypes.CDLL) -> dict[str, int]:
    """Addresses of the loops for tensors of bf16 or fp32, by name; compiled before where nobody has kept them.

    Raises:
        Exception: whatever Numba has against this machine.
    """
    _give(OPENMP, openmp)
    try:
        kept = _path(bf16)
        try:
            return _load(kept)
        except OSError:
            _keep(kept, bf16)
            return _load(kept)
    except (OSError, AttributeError, subprocess.SubprocessError):  # no folder, process, libm: for this one alone
        from dpo_workbench.models.loops import compile_all

        made = compile_all(bf16)
        _loaded.append(made)
        return {name: loop.address for name, loop in made.items()}


def _give(names: tuple[str, ...], library: Any) -> None:
    """Let compiled code find functions of a library."""
    for name in names:
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


def _path(bf16: bool) -> Path:
    """Of the object code for this source, these versions and this processor."""
    features = sorted(name for name, there in binding.get_host_cpu_features().items() if there)
    parts = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("loops", "objects")]
    parts += [" ".join([version("numba"), version("llvmlite"), binding.get_host_cpu_name(), *features]).encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return _folder() / f"loops.{key}.{'bf16' if bf16 else 'fp32'}.json"


@lru_cache
def _folder() -> Path:
    """Beside the package, or in the user's cache.

    Raises:
        OSError: neither can be written to.
    """
    beside = Path(__file__).parent / "__pycache__"
    for folder in (beside, cache_folder()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    raise OSError("no folder to keep object code in")


def _load(path: Path) -> dict[str, int]:
    data = path.read_bytes()
    if data[:DIGEST] != hashlib.sha256(data[DIGEST:]).digest():
        raise OSError(f"{path} is damaged")
    kept = json.loads(data[DIGEST:])
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    libc = ctypes.CDLL(None)
    _give(PYTHON, ctypes.pythonapi)
    _give(C, libc)
    stop = ctypes.cast(libc.abort, ctypes.c_void_p).value
    for name in NUMBA:
        binding.add_symbol(name, stop)
    target = binding.Target.from_default_triple().create_target_machine(codemodel="jitdefault")
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
    for _, code in kept.values():
        engine.add_object_file(binding.ObjectFileRef.from_data(base64.b64decode(code)))
    engine.finalize_object()
    _loaded.append(engine)
    return {name: engine.get_function_address(symbol) for name, (symbol, _) in kept.items()}


def _keep(path: Path, bf16: bool) -> None:
    """Compile in a process of its own, so that nothing of Numba stays in this one."""
    package = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        code = (
            f"import sys; sys.path[:0] = [p for p in [{package!r}] if p not in sys.path]; "
            f"from dpo_workbench.models.objects import _make; _make({str(made)!r}, {bf16})"
        )
        env = {**os.environ, "NUMBA_CACHE_DIR": folder}
        subprocess.run([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        made.replace(path)


def _make(path: str, bf16: bool) -> None:
    """Write a digest, and for the name of each loop its symbol and object code."""
    from dpo_workbench.models.loops import compile_all

    for name in OPENMP:  # nothing is run here
        binding.add_symbol(name, 1)
    known, made = {*OPENMP, *PYTHON, *C, *NUMBA}, {}
    for name, loop in compile_all(bf16).items():
        library = loop._library
        needed = {f.name for f in library._final_module.functions if f.is_declaration}
        unknown = sorted(x for x in needed - known if not x.startswith("llvm."))
        if unknown:  # LLVM would end a process that lacks them
            raise SystemExit(f"{name} calls {', '.join(unknown)}")
        _, _, (code, _) = library.serialize_using_object_code()
        made[name] = loop.native_name, base64.b64encode(code).decode()
    data = json.dumps(made).encode()
    Path(path).write_bytes(hashlib.sha256(data).digest() + data)
