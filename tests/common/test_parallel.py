"""Two processes on a CPU give the losses of one, and what stops one of them stops both."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from dpo_workbench.common import parallel

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def launch(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def job():
    spec = spec_from_file_location("parallel_job", HERE / "parallel_job.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tiny_folder, tmp_path_factory):
    """What two processes said of all scenes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    # `--cpu` alone starts one process (several need MPI); the launcher for many GPUs starts two, GPUs or not
    begin = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    port = (
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(20_000 + os.getpid() % 9_000),
    )
    out = launch(*begin, *port, str(HERE / "parallel_job.py"), str(tiny_folder), str(folder))
    return folder, [json.loads((folder / f"said-{k}.json").read_text()) for k in (0, 1)], out


def losses(history) -> list[float]:
    return [h["loss"] for h in history]


def test_losses_are_those_of_one_process_with_twice_the_micro_batch(two, job, tiny_folder) -> None:
    _, (first, second), _ = two
    one = job.go(str(tiny_folder), None, job.replace(job.CONFIG, micro_tokens=2 * job.CONFIG.micro_tokens))
    assert (first["size"], first["share"], second["share"]) == (2, [1, 3], [2])
    assert first["history"] == second["history"] and first["probes"] == second["probes"]
    assert len(one.history) == len(first["history"]) == 6
    for here, there in zip(one.history, first["history"], strict=True):
        assert here.keys() == there.keys() and all(here[k] == pytest.approx(there[k], abs=2e-4) for k in here)
    assert losses(first["history"]) == pytest.approx(losses(one.history), abs=1e-5)
    assert [p["score"] for p in first["probes"]] == pytest.approx([p["score"] for p in one.probes])


def test_a_bad_row_of_one_process_stops_both(two) -> None:
    _, said, _ = two
    texts = sorted(s["nan"] for s in said)
    assert texts[0].startswith("All processes must go on together. Another one stopped")
    assert "The loss must be finite. Got nan in row" in texts[1] and "p4" in texts[1]


def test_memory_that_runs_out_in_one_halves_both(two) -> None:
    _, said, out = two
    assert said[0]["memory"] == said[1]["memory"] and said[0]["memory"]["micro_tokens"] < 100
    assert out.count("memory ran out: micro_tokens is") >= 1
    assert losses(said[0]["memory"]["history"]) == pytest.approx(losses(said[0]["history"]), abs=1e-5)


def test_an_interrupt_of_one_is_saved_and_one_process_goes_on(two, job, tiny_folder, capsys) -> None:
    folder, said, out = two
    assert [s["interrupt"] for s in said] == ["finished False"] * 2
    assert "To go on, give the same launch command again" in out and out.count("interrupted after") == 1
    assert len(list(folder.glob("cut/checkpoints/*/step-*"))) == 2
    run = job.go(str(tiny_folder), folder / "cut")
    out = capsys.readouterr().out
    assert "going on after step" in out and "last bits may differ (processes: 2 there, 1 here)" in out
    assert losses(run.history) == pytest.approx(losses(said[0]["history"]), abs=1e-5)
    alone = parallel.share([3, 1, 2]), parallel.gathered("x"), parallel.from_first(lambda: 5)
    assert alone == ([3, 1, 2], ["x"], 5) and (parallel.size(), parallel.rank()) == (1, 0)


def test_the_command_line_of_two_writes_once(two, job, tiny_folder, tmp_path) -> None:
    folder, _, out = two
    assert out.count("adapter: ") == out.count("Run: 2 steps in") == 1
    assert (folder / "command" / "adapter" / "adapter_model.safetensors").is_file()
    pairs = job.Pairs.load(folder / "pairs.jsonl")
    job.train(job.load_model(str(tiny_folder)), pairs, job.TrainConfig(), folder=tmp_path, show=False)
    states = [next(place.glob("checkpoints/*/step-*/state.json")) for place in (tmp_path, folder / "command")]
    one, both = (json.loads(path.read_text()) for path in states)
    assert (one["machine"]["processes"], both["machine"]["processes"]) == (1, 2)
    # the command line chose the dtype: bf16 where the CPU has it
    assert losses(both["facts"]["history"]) == pytest.approx(losses(one["facts"]["history"]), abs=2e-3)
