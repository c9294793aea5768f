"""Kill, damage and interrupt training runs, resume them, and compare with a run that was left alone: results/kill.json.

    python benchmarks/kill.py                 # 50 kills, 5 controls, 40 damages, 3 interrupts; resumable
    python benchmarks/kill.py --minutes 3     # only as many as fit

Each run trains `nano` in its own process, forked from one that has only imported the package. A resumed run passes if
its losses, weights and optimizer state at the end are equal to the last bit to those of the uninterrupted run. The
controls leave something out on purpose when they resume, and must differ.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process and a pool of threads do not go together

import argparse
import errno
import hashlib
import json
import multiprocessing
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.task import Example, Score, Task
from dpo_workbench.training import checkpoint as checkpoints
from dpo_workbench.training import loop
from dpo_workbench.training import run as run_module
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import train

RESULTS = Path(__file__).parent / "results" / "kill.json"
FORK = multiprocessing.get_context("fork")
FILES = (*checkpoints.FILES, "MANIFEST.json")
DROPPED = ("step", "optimizer", "schedule", "data order")
DAMAGES = ("truncated", "flipped byte", "missing file")
in_save = FORK.Value("i", 0)  # 1 while the child writes a checkpoint


def score(example: Example, answer: str) -> Score:
    return Score(1.0) if example.reference in answer else Score(0.0, "wrong")


def job(steps: int) -> tuple[Pairs, TrainConfig]:
    """Some pairs, and settings with which a run has so many steps, a save after each and probes on the way."""
    rows = [Pair(f"p{k}", f"What is {k} + {k}?", f"It is {k + k}.", f"{k} {k} " * (k % 3 + 1)) for k in range(24)]
    texts = {s: [(f"{s}{k}", f"What is {k} + 1?", str(k + 1)) for k in range(3)] for s in ("train", "dev")}
    examples = {s: [Example(*row, row[0]) for row in part] for s, part in texts.items()}
    task = Task("sums", examples, score, max_new_tokens=4)
    epochs = -(-steps // 5)  # 20 of the 24 pairs are trained on, 4 in a batch
    config = TrainConfig(batch_size=4, epochs=epochs, lr=1e-3, probes=3, held_out=0.17, checkpoint_seconds=0, rank=4)
    return Pairs(rows, task), config


def child(folder: Path, steps: int, log: Path, at: tuple[int, int, int] | None, drop: str | None) -> None:
    """One run in this process, in `folder`.

    Args:
        folder, steps, log: of the run; what it prints goes to the log.
        at: (save, event, what): when that call to the disk is reached in that save, SIGKILL (what = 9), or "no space
            left" (28) from there to the end of the save and SIGKILL at the next one.
        drop: what a resumed run leaves out.
    """
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    count = _instrument(at)
    if drop:
        _leave_out(drop)
    pairs, config = job(steps)
    run = train(load_model("nano", device="cpu"), pairs, config, folder=folder, show=False)
    live = {"losses": _hash(json.dumps(run.history))}
    live["weights"] = _hash(*(v.numpy().tobytes() for _, v in sorted(run.model.adapter_tensors().items())))
    write_json(folder / "live.json", {"live": live, "events": count[1:], "steps": len(run.history)})


def _instrument(at: tuple[int, int, int] | None) -> list[int]:
    """Count the calls to the disk of each save, and fail at one of them; gives [save, calls of save 0, 1, ...]."""
    count, full = [0], [False]

    def strike(takes_space: bool = True) -> None:
        if not in_save.value:
            return
        if at and count[0] - 1 > at[0] and at[2] == errno.ENOSPC:
            os.kill(os.getpid(), signal.SIGKILL)
        if at and (count[0] - 1, count[-1]) == at[:2]:
            if at[2] == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            full[0] = True
        count[-1] += 1
        if full[0] and takes_space:
            raise OSError(errno.ENOSPC, "No space left on device")

    def struck(call: Callable, takes_space: bool = True) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            strike(takes_space)
            result = call(*args, **kwargs)
            strike(takes_space)
            return result

        return wrapped

    def half_written(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half of a file")
        strike()
        checkpoints_save(tensors, path)

    save, checkpoints_save = run_module.save_checkpoint, checkpoints.save_file

    def watched(*args: Any) -> None:
        count[0] += 1
        count.append(0)
        in_save.value, full[0] = 1, False
        try:
            save(*args)
        finally:
            in_save.value = 0

    run_module.save_checkpoint, checkpoints.save_file = watched, half_written
    os.fsync, os.replace, shutil.rmtree = struck(os.fsync), struck(os.replace), struck(shutil.rmtree, False)
    return count


def _leave_out(drop: str) -> None:
    """Make this process a resumed run that forgets something."""
    first, load = [0], run_module.load_checkpoint
    rate, rows = loop.learning_rate, loop.rows_of_step

    def loaded(*args: Any) -> Any:
        tensors, facts = load(*args)
        first[0] = facts["step"]
        if drop == "step":
            facts["step"] = 0
        return tensors, facts

    run_module.load_checkpoint = loaded
    if drop == "optimizer":
        run_module.unpack_optimizer = lambda optimizer, tensors: None
    elif drop == "schedule":
        loop.learning_rate = lambda step, n, config: rate(step - first[0], n, config)
    elif drop == "data order":
        loop.rows_of_step = lambda all_rows, config, step: rows(all_rows, config, max(0, step - first[0]))


def _hash(*parts: str | bytes) -> str:
    return hashlib.sha256(b"".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()[:16]


def outcome(folder: Path) -> dict[str, str]:
    """What a finished run left: hashes of losses, weights and optimizer state, on disk and in memory."""
    newest = steps_of(folder)[-1]
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    live = json.loads((folder / "live.json").read_text(encoding="utf-8"))["live"]
    facts = {key: state[key] for key in ("history", "probes", "best_step")}
    on_disk = {name: _hash((newest / f"{name}.safetensors").read_bytes()) for name in checkpoints.TENSORS}
    on_disk |= {"step": str(state["step"]), "facts": _hash(json.dumps(facts))}
    return {**{f"saved {key}": value for key, value in on_disk.items()}, **{f"live {k}": v for k, v in live.items()}}


def steps_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*/step-*"))


class Bench:
    """The trials, in the order in which they are run; each is kept when done, so that a stopped bench goes on."""

    def __init__(self, work: Path, steps: int, seed: int):
        self.work, self.steps, self.seed = work, steps, seed
        self.log, self.done_file = work / "log.txt", work / "trials.json"
        work.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, Any] = json.loads(self.done_file.read_text()) if self.done_file.is_file() else {}

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self.done[name] = result
        write_json(self.done_file, self.done)
        print(f"{name}: {result}", flush=True)

    def run(self, folder: Path, at: Any = None, drop: str | None = None, kill_after: float | None = None) -> str:
        """One process; gives what it printed."""
        self.log.write_text("")
        in_save.value = 0
        process = FORK.Process(target=child, args=(folder, self.steps, self.log, at, drop))
        process.start()
        process.join(kill_after)
        if process.is_alive() and kill_after is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        text = self.log.read_text(encoding="utf-8")
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"a run ended with {process.exitcode}:\n{text}")
        return text

    def fresh(self, name: str) -> Path:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def baseline(self) -> None:
        """Left alone, twice: the runs must be equal before others can be compared with them."""
        runs = []
        for name in ("alone", "alone again"):
            begun, folder = time.monotonic(), self.fresh(name)
            self.run(folder)
            runs.append(outcome(folder))
        live = json.loads((folder / "live.json").read_text(encoding="utf-8"))
        facts = {"outcome": runs[0], "seconds": time.monotonic() - begun, "events": live["events"]}
        self.keep("alone", {"equal": runs[0] == runs[1], "steps": live["steps"], **facts})

    def compare(self, folder: Path) -> list[str]:
        """Which parts differ from the run that was left alone."""
        got, want = outcome(folder), self.done["alone"]["outcome"]
        return [key for key in want if got[key] != want[key]]

    def kill(self, number: int, inside: bool) -> None:
        """SIGKILL at a random moment, or at a random call to the disk of a random save; then resume."""
        draw = random.Random(f"{self.seed} {number}")
        alone, name = self.done["alone"], f"kill {number}"
        while True:
            folder, at, after = self.fresh("killed"), None, None
            if inside:
                save = draw.randrange(len(alone["events"]))
                at = (save, draw.randrange(alone["events"][save]), signal.SIGKILL.value)
            else:
                after = draw.uniform(0.2, alone["seconds"])
            self.run(folder, at=at, kill_after=after)
            saving = bool(in_save.value)
            if not (folder / "live.json").is_file():
                break  # it did not finish before it was killed
        text = self.run(folder)
        on = re.search(r"continuing after step (\d+)", text)
        where = {"at": list(at)} if at else {"after_seconds": round(after or 0, 2)}
        went_on = int(on[1]) if on else None
        self.keep(name, {**where, "inside_a_save": saving, "went_on_after": went_on, "differs": self.compare(folder)})

    def control(self, drop: str | None) -> None:
        """A run killed halfway whose continuation leaves something out must be another run; nothing left out: equal."""
        folder = self.fresh("control")
        self.run(folder, at=(self.steps // 2 + 2, 0, signal.SIGKILL.value))
        try:
            self.run(folder, drop=drop)
            differs = self.compare(folder)
        except SystemExit as stopped:  # a guard noticed it
            told = re.search(r"WorkbenchError: (.+?)[.(]", str(stopped))
            if drop is None or told is None:
                raise
            differs = [f"refused: {told[1].strip()}"]
        self.keep(f"control {drop}", {"differs": differs})

    def damage(self, number: int, what: str, name: str, both: bool) -> None:
        """Damage the newest checkpoint, or both, and resume: from the older one, or from the start."""
        source, folder = self.work / "halfway", self.fresh("damaged")
        if not source.is_dir():
            self.run(source, at=(self.steps // 2 + 2, 0, signal.SIGKILL.value))
        shutil.copytree(source, folder)
        steps = [int(path.name[5:]) for path in steps_of(folder)]
        for path in steps_of(folder)[0 if both else 1 :]:
            _damage(path, what, name, random.Random(f"{self.seed} {number} {path.name}"))
        text = self.run(folder)
        on = re.search(r"continuing after step (\d+)", text)
        told, fell_back = text.count("skipped"), int(on[1]) if on else 0
        clean = told == 1 + both and fell_back == (0 if both else steps[0])
        self.keep(f"damage {number}", self._damaged(f"{what}, {name}, {'both' if both else 'newest'}", clean, folder))

    def full_disk(self, number: int) -> None:
        """No space in one save: the run goes on. It is killed before the next one, and falls back on the last."""
        draw, folder, events = random.Random(f"{self.seed} {number}"), self.fresh("full"), self.done["alone"]["events"]
        save = draw.randrange(1, len(events) - 1)
        before_rename = events[1] - 7  # what comes after it only cleans up: a full disk then hurts nothing
        text = self.run(folder, at=(save, draw.randrange(before_rename), errno.ENOSPC))
        kept = steps_of(folder)
        told = text.count("no checkpoint after step")
        text = self.run(folder)
        on = re.search(r"continuing after step (\d+)", text)
        clean = on is not None and int(on[1]) == int(kept[-1].name[5:]) and told == 1 and "is damaged" not in text
        self.keep(f"damage {number}", self._damaged("disk full", clean, folder))

    def _damaged(self, what: str, clean: bool, folder: Path) -> dict[str, Any]:
        return {"what": what, "clean_fallback": clean, "differs": self.compare(folder)}

    def command(self, number: signal.Signals) -> None:
        """The command line, stopped by a signal and started again by the line that it prints."""
        pairs, ends = self.work / "pairs.jsonl", []
        job(self.steps)[0].save(pairs)
        begin = [sys.executable, "-m", "dpo_workbench", "train", str(pairs), "--task", "", "--epochs", "20", "--out"]
        for name in ("left alone", "stopped"):
            folder = self.fresh(f"command {name}")
            process = subprocess.Popen([*begin, str(folder)], stdout=subprocess.PIPE, text=True, bufsize=1)
            text = ""
            for line in process.stdout or ():
                text += line
                if name == "stopped" and line.startswith("step ") and "interrupted" not in text:
                    process.send_signal(number)
                    name = "stopping"
            code = process.wait()
            if name == "stopping":
                line = re.search(r"To continue, type: dpo-workbench (.*)", text)
                again = [sys.executable, "-m", "dpo_workbench", *shlex.split(line[1] if line else "")]
                text = subprocess.run(again, capture_output=True, text=True, check=True).stdout
            ends.append([path.read_bytes() for path in sorted(steps_of(folder)[-1].glob("*.safetensors"))])
        equal = ends[0] == ends[1] and "continuing after step" in text
        self.keep(number.name, {"exit_code": code, "resumed_equal": equal})

    def notebook(self) -> None:
        """The ■ of a notebook, as Jupyter sends it, and the same cell again."""
        from jupyter_client.manager import start_new_kernel

        manager, client = start_new_kernel(kernel_name="python3", cwd=str(self.work.resolve()))
        pairs, ends, texts = self.work / "pairs.jsonl", [], []
        job(self.steps)[0].save(pairs)
        try:
            for name, stop in (("alone", False), ("stopped", True), ("stopped", False)):
                folder = self.work.resolve() / f"notebook {name}"
                if name == "alone" or stop:
                    shutil.rmtree(folder, ignore_errors=True)
                client.execute(
                    "import dpo_workbench as dw\n"
                    f"pairs = dw.Pairs.load({str(pairs.resolve())!r})\n"
                    f"run = dw.train(dw.load_model('nano'), pairs, dw.TrainConfig(epochs=20), folder={str(folder)!r})\n"
                    "print('finished', run.finished)"
                )
                texts.append(_listen(manager, client, stop))
                if not stop:
                    ends.append([p.read_bytes() for p in sorted(steps_of(folder)[-1].glob("*.safetensors"))])
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
        told = "run the cell again" in texts[1] and "finished False" in texts[1]
        equal = ends[0] == ends[1] and "continuing after step" in texts[2]
        self.keep("notebook", {"told": told, "resumed_equal": equal})


def _listen(manager: Any, client: Any, stop: bool) -> str:
    """What the cell prints until it ends; with `stop`, it is interrupted at its first step line."""
    text = ""
    while True:
        try:
            message = client.get_iopub_msg(timeout=120)
        except queue.Empty:
            raise SystemExit(f"the kernel says nothing any more:\n{text}") from None
        content = message["content"]
        text += content.get("text", "") + "\n".join(content.get("traceback", ()))
        if stop and "\nstep " in text:
            manager.interrupt_kernel()
            stop = False
        if (
            message["msg_type"] == "status"
            and content["execution_state"] == "idle"
            and "execute_request" in str(message["parent_header"].get("msg_type"))
        ):
            return text


def _damage(path: Path, what: str, name: str, draw: random.Random) -> None:
    if what == "empty folder":
        for file in path.iterdir():
            file.unlink()
        return
    file, raw = path / name, bytearray((path / name).read_bytes())
    if what == "missing file":
        file.unlink()
    elif what == "truncated":
        file.write_bytes(raw[: draw.randrange(len(raw))])
    else:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)


def trials(bench: Bench, kills: int, short: bool) -> list[tuple[str, Callable[[], None]]]:
    """Name and work of each trial; three in ten kills fall into a save for sure."""
    every: list[tuple[str, Callable[[], None]]] = [("alone", bench.baseline)]
    every += [(f"kill {k}", lambda k=k: bench.kill(k, k % 10 < 3)) for k in range(kills)]
    if short:
        return [*every, ("control optimizer", lambda: bench.control("optimizer"))]
    every += [(f"control {drop}", lambda drop=drop: bench.control(drop)) for drop in (*DROPPED, None)]
    plans = [(what, name, both) for both in (False, True) for what in DAMAGES for name in FILES]
    plans += [("empty folder", "all files", both) for both in (False, True)]
    every += [(f"damage {k}", lambda k=k, plan=plan: bench.damage(k, *plan)) for k, plan in enumerate(plans)]
    every += [(f"damage {k}", lambda k=k: bench.full_disk(k)) for k in range(len(plans), 40)]
    every += [(s.name, lambda s=s: bench.command(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    return [*every, ("notebook", bench.notebook)]


def summary(done: dict[str, Any], names: list[str]) -> dict[str, Any]:
    kills = [done[n] for n in names if n.startswith("kill ")]
    damages = [done[n] for n in names if n.startswith("damage ")]
    controls = {n[8:]: done[n]["differs"] for n in names if n.startswith("control ")}
    return {
        "steps": done["alone"]["steps"],
        "two_runs_left_alone_equal": done["alone"]["equal"],
        "kills": len(kills),
        "inside_a_save": sum(k["inside_a_save"] for k in kills),
        "went_on_from_a_checkpoint": sum(k["went_on_after"] is not None for k in kills),
        "equal_to_the_last_bit": sum(not k["differs"] for k in kills),
        "controls_differ_in": controls,
        "damaged": len(damages),
        "clean_fallbacks": sum(d["clean_fallback"] and not d["differs"] for d in damages),
        "interrupts": {n: done[n] for n in names if n in ("SIGINT", "SIGTERM", "notebook")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=15, help="of a run, a multiple of 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no trial after that; the next call goes on")
    parser.add_argument("--short", action="store_true", help="kills and one control only, printed and not recorded")
    parser.add_argument("--work", type=Path, default=Path("work/kill"))
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)  # for the command line and the kernel
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    bench, begun = Bench(args.work, args.steps, args.seed), time.monotonic()
    every = trials(bench, args.kills, args.short)
    for name, work in every:
        if name not in bench.done and time.monotonic() - begun < 60 * args.minutes:
            work()
    names = [name for name, _ in every]
    left = [name for name in names if name not in bench.done]
    if left:
        print(f"{len(left)} of {len(names)} trials are left: the same command goes on")
        return
    results = summary(bench.done, names)
    print(json.dumps(results, indent=1))
    if not args.short:
        about = {"machine": describe(), "date": date.today().isoformat(), "seed": args.seed}
        write_json(RESULTS, {**results, "command": "python benchmarks/kill.py", **about})


if __name__ == "__main__":
    main()
