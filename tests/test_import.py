"""What an import loads, and that every public name and every module is there."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import dpo_workbench as dw

MODULES = sorted(m.name for m in pkgutil.walk_packages(dw.__path__, "dpo_workbench."))
HEAVY = ("torch", "transformers", "matplotlib", "peft", "scipy", "datasets", "ipywidgets")


def loaded_by(code: str) -> set[str]:
    code += f"\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import dpo_workbench",
        "import dpo_workbench as dw; dir(dw); dw.__version__; dw.__all__",
        "import dpo_workbench as dw; dw.load_task('receipts'); dw.Pair; dw.TrainConfig; dw.WorkbenchError",
        "import dpo_workbench.cli",
        "import dpo_workbench as dw; dw.read_pairs([{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}])",
    ],
)
def test_light_things_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_check_above_can_fail() -> None:
    assert "matplotlib" in loaded_by("import matplotlib")


def test_every_module_imports() -> None:
    assert len(MODULES) > 25 and "dpo_workbench.training.run" in MODULES
    # these are programs: the command line, and what runs inside the sandbox without the package
    programs = {"dpo_workbench.__main__", "dpo_workbench.sandbox.child", "dpo_workbench.sandbox.sql_child"}
    for name in MODULES:
        if name not in programs:
            assert importlib.import_module(name).__name__ == name


def test_public_names_resolve() -> None:
    for home, names in dw._HOMES.items():
        module = importlib.import_module(f"dpo_workbench.{home}")
        for name in names:
            assert getattr(dw, name) is getattr(module, name)
            assert name in dir(dw) and name in dw.__all__


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="no name 'trian'"):
        dw.trian  # noqa: B018


def test_importing_prints_and_writes_nothing(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import dpo_workbench, dpo_workbench.cli"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr, list(tmp_path.iterdir())) == (0, "", "", [])
