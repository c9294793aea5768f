"""Every test here runs real children; the hostile ones only where the kernel's guards hold."""

import pytest

from dpo_workbench.sandbox.process import guard_level, sandbox_line


@pytest.fixture(scope="session")
def strong() -> None:
    if guard_level() != "strong":
        pytest.skip(sandbox_line())
