"""What Binder installs: every package that the course needs, in the versions that are tested together."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;@]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def listed() -> dict[str, str]:
    """Package -> version in environment.yml."""
    parts = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    rows = next(part["pip"] for part in parts if isinstance(part, dict))
    return {name_of(row): row.split("==")[1] for row in rows if not row.startswith("-")}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_binder_has_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {name_of(row) for row in project["dependencies"]} - listed().keys() == set()
    setup = (ROOT / "notebooks" / "00_start.ipynb").read_text(encoding="utf-8")
    assert "dpo-workbench @ git" in setup  # the setup cell asks for no extra, which would have to be listed too


def test_binder_pins_the_tested_versions() -> None:
    rows = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    tested = {name_of(name): version for name, version in rows}
    for name, version in listed().items():
        if name in tested:
            assert version.removesuffix("+cpu") == tested[name], name
