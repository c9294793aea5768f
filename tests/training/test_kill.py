"""The short form of benchmarks/kill.py: real SIGKILLs at random moments and inside saves, resumed in the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_five_kills(tmp_path) -> None:
    command = ["-m", "benchmarks.kill", "--short", "--kills", "5", "--steps", "5", "--work", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert seen["two_runs_left_alone_equal"] and seen["kills"] == seen["equal_to_the_last_bit"] == 5
    assert seen["inside_a_save"] >= 3 and seen["went_on_from_a_checkpoint"] >= 1
    assert "saved optimizer" in seen["controls_differ_in"]["optimiser"]  # negative control
