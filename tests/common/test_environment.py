"""Folders, device, dtype and the machine's description."""

import json
from pathlib import Path

import pytest
import torch

from dpo_workbench.common import environment
from dpo_workbench.common.environment import cache_folder, choose_device, choose_dtype, data_folder, describe


def test_data_folder_is_the_checkouts_or_the_wheels(tmp_path, monkeypatch) -> None:
    assert (data_folder() / "receipts" / "train.jsonl").is_file()
    package = tmp_path / "site" / "dpo_workbench"
    (package / "common").mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "common" / "environment.py"))
    assert data_folder() == tmp_path / "site" / "data"
    (package / "_data").mkdir()
    assert data_folder() == package / "_data"


def test_cache_folder_by_environment(monkeypatch) -> None:
    monkeypatch.setenv("DPO_WORKBENCH_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("DPO_WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/dpo_workbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/dpo_workbench")


def test_device_as_asked_or_the_gpu_where_there_is_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda" and choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device().type == "cpu"


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), torch.float32), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_dtype_of_a_gpu_follows_its_capability(monkeypatch, capability, dtype) -> None:
    """A T4 (7.5) only emulates bf16, though torch says that it is supported."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a: True)
    assert choose_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2"}, torch.float32),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx512_bf16", "avx2"}, torch.bfloat16),
        (set(), torch.float32),
    ],
)
def test_dtype_of_a_cpu_follows_its_instructions(monkeypatch, flags, dtype) -> None:
    monkeypatch.setattr(environment, "_cpu_info", lambda name: " ".join(flags))
    assert choose_dtype(torch.device("cpu")) == dtype
    assert choose_dtype(torch.device("mps")) == torch.float32


def test_description_is_plain_and_complete() -> None:
    facts = describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__ and facts["cores"] >= 1 and facts["processor"]
    assert {"system", "python", "transformers", "peft"} <= set(facts)


def test_peak_memory_is_a_plausible_number_of_gib() -> None:
    assert 0.05 < environment.peak_memory_gib() < 1000
