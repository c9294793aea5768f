"""The loops' object code: made once, loaded without Numba, and made anew where it does not fit or is damaged."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

objects = pytest.importorskip("dpo_workbench.models.objects", reason="the extra cpu is not installed")
LOOPS = {"norm", "norm_slope", "turn", "gate", "gate_slopes", "softmax", "take", "put", "add", "vocabulary"}


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> bytes:
    """The object code for fp32, compiled in a process of its own."""
    path = tmp_path_factory.mktemp("kept") / "made"
    objects._keep(path, False)
    assert sorted(p.name for p in path.parent.iterdir()) == ["made"]  # Numba's own cache is gone
    return path.read_bytes()


def test_a_process_that_finds_them_does_without_numba(openmp) -> None:
    run = (
        "import sys, torch\nfrom dpo_workbench.models import kernels\n"
        "out = torch.zeros(2, 4)\nkernels.gated(torch.ones(2, 8), out)\n"
        "print(kernels._compile(torch.float32) is not None, 'numba' in sys.modules, round(out.sum().item(), 3))"
    )
    for _ in range(2):  # the first may have to make them
        said = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["True", "False", "5.848"]


@pytest.mark.parametrize("harm", ["missing", "cut short", "a byte", "another file"])
def test_damaged_code_is_made_anew(harm: str, code: bytes, openmp, tmp_path, monkeypatch) -> None:
    path, made = tmp_path / "kept", []
    monkeypatch.setattr(objects, "_path", lambda bf16: path)
    monkeypatch.setattr(objects, "_keep", lambda path, bf16: made.append(bf16) or path.write_bytes(code))
    half = len(code) // 2
    harmed = {
        "cut short": code[:half],
        "a byte": code[:900] + bytes([code[900] ^ 1]) + code[901:],
        "another file": b"x",
    }
    if harm != "missing":
        path.write_bytes(harmed[harm])
    for _ in range(2):
        assert set(objects.load(False, openmp)) == LOOPS
    assert made == [False]


@pytest.mark.parametrize("lacking", ["folder", "process"])
def test_without_a_folder_or_a_process_this_one_compiles(lacking: str, openmp, tmp_path, monkeypatch) -> None:
    loops, asked = pytest.importorskip("dpo_workbench.models.loops"), []

    class Loop:
        address = 7

    monkeypatch.setattr(loops, "compile_all", lambda bf16: asked.append(bf16) or {"norm": Loop()})
    if lacking == "folder":
        (tmp_path / "__pycache__").write_text("a file where a folder should be")
        monkeypatch.setattr(objects, "__file__", str(tmp_path / "objects.py"))
        monkeypatch.setattr(objects, "cache_folder", lambda: tmp_path / "__pycache__" / "deeper")
        monkeypatch.setattr(objects, "_folder", objects._folder.__wrapped__)
    else:
        monkeypatch.setattr(objects, "_path", lambda bf16: tmp_path / "kept")
        monkeypatch.setattr(objects.sys, "executable", sys.executable + "-that-is-not-there")
    assert objects.load(True, openmp) == {"norm": 7} and asked == [True]


def test_another_processor_version_or_dtype_has_code_of_its_own(monkeypatch) -> None:
    paths = {objects._path(False), objects._path(True)}
    honest = objects.binding.get_host_cpu_features()
    with monkeypatch.context() as patch:
        patch.setattr(objects.binding, "get_host_cpu_features", lambda: {**honest, "a new one": True})
        paths.add(objects._path(False))
    with monkeypatch.context() as patch:
        patch.setattr(objects, "version", lambda name: "0.0" if name == "numba" else importlib.metadata.version(name))
        paths.add(objects._path(False))
    assert len(paths) == 4 and objects._path(False) in paths


def test_code_that_calls_what_no_process_has_is_not_kept(tmp_path) -> None:
    """LLVM ends a process that loads such code."""
    path = tmp_path / "made"
    run = f"from dpo_workbench.models import objects\nobjects.NUMBA = ()\nobjects._make({str(path)!r}, False)"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and not path.exists()
    assert done.stderr.startswith("norm calls ") and "numba_gil_ensure" in done.stderr
