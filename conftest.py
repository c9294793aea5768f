"""What pytest needs before it reads tests/ and notebooks/: the small budget, and notebooks compared without stderr."""

import os

import pytest

os.environ.setdefault("DPO_WORKBENCH_BUDGET", "tiny")  # a bare `pytest` runs what CI runs


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Tell nbval not to compare stderr: progress bars and library warnings differ from machine to machine."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
