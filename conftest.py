"""What pytest needs before it reads tests/ and notebooks/; every worker of pytest-xdist reads this as well."""

import os

import pytest

os.environ.setdefault("DPO_WORKBENCH_BUDGET", "tiny")  # a bare `pytest` runs what CI runs
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker, one core; sums are added in one order
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: no test asks the network


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Tell nbval not to compare stderr: progress bars and library warnings differ from machine to machine."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


LONG_NOTEBOOKS = ("06_extraction.ipynb", "07_code.ipynb", "10_sql.ipynb")  # minutes each: `make test-all` runs them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cells of solutions and of long notebooks are slow tests; a cell has no line for the mark itself."""
    for item in items:
        if item.path.suffix == ".ipynb" and (item.path.parent.name == "solutions" or item.path.name in LONG_NOTEBOOKS):
            item.add_marker(pytest.mark.slow)
