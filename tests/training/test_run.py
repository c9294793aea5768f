"""Whole runs on a tiny model: what moves and what does not, the best adapter, resuming, interrupts.

That killed and interrupted runs end in the same bits is tested in tests/oracles/test_training.py too.
"""

import json
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
import transformers as hf

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.task import Example, Score, Task
from dpo_workbench.training import loop, losses
from dpo_workbench.training import run as run_module
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import Run, sft, train

CONFIG = TrainConfig(lr=2e-2, batch_size=4, epochs=2, rank=4, alpha=8, probes=2, held_out=0.2, nll_weight=0.1)


def state(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model._causal().state_dict().items() if "lora_" not in k}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def scripted(task: Task, scores: list[float]) -> Task:
    """The task with dev scores that follow a script, one value a probe."""
    left, n = list(scores), [0]

    def score(example: Example, answer: str) -> Score:
        value = left[min(n[0] // len(task.splits["dev"]), len(left) - 1)]
        n[0] += 1
        return Score(value, None if value == 1 else "wrong")

    splits = {name: rows.examples for name, rows in task.splits.items()}
    new = Task(task.name, splits, score, max_new_tokens=3)
    new.score = lambda e, a, finished=True: score(e, a)  # type: ignore[method-assign]
    return new


def test_adapter_moves_and_base_weights_do_not(moved, toy_pairs) -> None:
    start, base = moved.adapter_tensors(), None
    with moved.active():
        base = state(moved)
    run = train(moved, toy_pairs, replace(CONFIG, probes=0), show=False)
    assert run.finished and equal(state(run.model), base)
    assert equal(moved.adapter_tensors(), start)  # the handle that came in
    moved_on = run.model.adapter_tensors()
    assert moved_on.keys() == start.keys() and all(not torch.equal(v, start[k]) for k, v in moved_on.items())


def test_history_has_an_entry_a_step_and_the_loss_falls(moved, toy_pairs) -> None:
    run = train(moved, toy_pairs, replace(CONFIG, epochs=6, probes=0, nll_weight=0.0), show=False)
    assert [h["step"] for h in run.history] == list(range(1, 19))  # 10 pairs of 12 in batches of 4, 6 times
    assert run.history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert run.history[-1]["loss"] < 0.6
    assert run.history[-1]["rewards/margins"] > 0.1 and run.best_step == 18
    assert "18 steps in" in repr(run) and "Last step: loss" in repr(run)


def test_policy_log_ratios_move_apart_for_each_loss(moved, toy_pairs) -> None:
    for name in ("ipo", {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}):
        run = train(moved, toy_pairs, replace(CONFIG, loss=name, probes=0), show=False)
        assert run.history[-1]["rewards/margins"] > 0, name


def test_weights_of_pairs_are_relative_and_part_of_a_run(tiny_folder, toy_pairs, tmp_path, capsys) -> None:
    def weigh(first: float, rest: float) -> Pairs:
        return Pairs([replace(p, weight=rest if k else first) for k, p in enumerate(toy_pairs)], toy_pairs.task)

    config = replace(CONFIG, probes=1, held_out=0.0, batch_size=1)  # one pair a step: no weight cancels out
    plain, same, other = (
        run_on(tmp_path / name, tiny_folder, pairs, config)
        for name, pairs in (("one", toy_pairs), ("two", weigh(3.0, 3.0)), ("three", weigh(3.0, 1.0)))
    )
    assert same.history == plain.history and other.history != plain.history
    assert other.history[0]["loss"] / plain.history[0]["loss"] == pytest.approx(6 / 7)  # 1 over a mean of 14 / 12
    capsys.readouterr()
    assert run_on(tmp_path / "one", tiny_folder, weigh(3.0, 1.0), config).history == other.history
    assert "continuing" not in capsys.readouterr().out  # the checkpoint of other weights is another run's


def test_wrong_reference_is_caught_at_step_0(moved, toy_pairs, monkeypatch) -> None:
    honest = run_module.reference_logps
    monkeypatch.setattr(
        run_module, "reference_logps", lambda *a, **k: {i: (c, r - 2.0) for i, (c, r) in honest(*a, **k).items()}
    )
    with pytest.raises(WorkbenchError, match="Before the first update the policy must equal the reference"):
        train(moved, toy_pairs, CONFIG, show=False)
    monkeypatch.undo()
    assert train(moved, toy_pairs, replace(CONFIG, probes=0), show=False).finished  # negative control


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_policy_that_is_not_its_start_is_caught_at_step_0(moved, tiny, toy_pairs, monkeypatch, epochs) -> None:
    monkeypatch.setattr(type(tiny), "with_new_adapter", lambda self, **_: moved)
    with pytest.raises(WorkbenchError, match="Before the first update the policy must equal the reference"):
        train(tiny, toy_pairs, replace(CONFIG, epochs=epochs, probes=0), show=False)


def stop_after(monkeypatch, n: int, error: type[BaseException]) -> None:
    """The n-th step of the next run raises before anything is computed."""
    honest, calls = loop.train_step, []

    def sometimes(*args):
        calls.append(1)
        if len(calls) > n:
            raise error
        return honest(*args)

    monkeypatch.setattr(loop, "train_step", sometimes)


RESUME = replace(CONFIG, epochs=2, probes=3)  # 6 steps, probes and checkpoints after 2, 4 and 6


def run_on(folder, model_folder, pairs, config=RESUME) -> Run:
    """A run in what could be another process: the model is loaded again."""
    model = load_model(model_folder, device="cpu", dtype=torch.float32)
    return train(model, pairs, config, folder=folder, show=False)


@pytest.mark.parametrize(("stop", "error"), [(2, KeyboardInterrupt), (5, RuntimeError)])
def test_resumed_equals_uninterrupted(tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys, stop, error) -> None:
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    stop_after(monkeypatch, stop, error)
    try:
        stopped = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
        assert error is KeyboardInterrupt and not stopped.finished and len(stopped.history) == stop
    except RuntimeError:
        assert error is RuntimeError
    monkeypatch.undo()
    capsys.readouterr()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert f"continuing after step {stop // 2 * 2}" in capsys.readouterr().out
    assert again.history == whole.history and again.probes == whole.probes and again.best_step == whole.best_step
    assert equal(again.model.adapter_tensors(), whole.model.adapter_tensors())
    last = [sorted((tmp_path / n / "checkpoints").glob("*/step-*"))[-1] for n in ("whole", "cut")]
    assert (last[0] / "adapter.safetensors").read_bytes() == (last[1] / "adapter.safetensors").read_bytes()
    assert (last[0] / "optimizer.safetensors").read_bytes() == (last[1] / "optimizer.safetensors").read_bytes()


def test_a_run_resumes_although_the_vision_encoder_gets_no_gradient(tiny, toy_pairs, tmp_path, monkeypatch, capsys):
    """Gemma 3 has adapters there too, which text never reaches; the optimizer keeps no state for them."""
    text = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28}, mm_tokens_per_image=4)
    hf.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    whole = run_on(tmp_path / "whole", tmp_path / "model", toy_pairs)
    stop_after(monkeypatch, 3, KeyboardInterrupt)
    assert not run_on(tmp_path / "cut", tmp_path / "model", toy_pairs).finished
    monkeypatch.undo()
    capsys.readouterr()
    again = run_on(tmp_path / "cut", tmp_path / "model", toy_pairs)
    assert "continuing after step 2" in capsys.readouterr().out and again.history == whole.history
    assert equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


def test_resuming_from_a_wrong_state_is_another_run(tiny_folder, toy_pairs, tmp_path, monkeypatch) -> None:
    """Negative control of the test above: without the optimiser's state the bits differ."""
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    stop_after(monkeypatch, 3, RuntimeError)
    with pytest.raises(RuntimeError):
        run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "unpack_optimizer", lambda *a: None)
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert again.history[:2] == whole.history[:2] and again.history != whole.history


def test_resuming_does_not_hang_on_a_fingerprint_taken_before(
    tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys
) -> None:
    """An evaluation before the run takes the model's fingerprint; after a stop the script may skip it."""
    stop_after(monkeypatch, 3, RuntimeError)
    model = load_model(tiny_folder, device="cpu", dtype=torch.float32)
    model.fingerprint()
    with pytest.raises(RuntimeError):
        train(model, toy_pairs, RESUME, folder=tmp_path, show=False)
    monkeypatch.undo()
    run_on(tmp_path, tiny_folder, toy_pairs)
    assert "continuing after step 2" in capsys.readouterr().out


def test_damaged_newest_checkpoint_is_passed_over(tiny_folder, toy_pairs, tmp_path, capsys) -> None:
    whole = run_on(tmp_path, tiny_folder, toy_pairs)
    newest = sorted((tmp_path / "checkpoints").glob("*/step-*"))[-1]
    path = newest / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    capsys.readouterr()
    again = run_on(tmp_path, tiny_folder, toy_pairs)
    out = capsys.readouterr().out
    assert "step-000006 is damaged (adapter.safetensors is damaged)" in out and "after step 4" in out
    assert again.history == whole.history and equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


@pytest.mark.parametrize("change", [{"beta": 0.2}])
def test_a_checkpoint_of_other_settings_is_not_taken(tiny_folder, toy_pairs, tmp_path, capsys, change) -> None:
    run_on(tmp_path, tiny_folder, toy_pairs)
    capsys.readouterr()
    run_on(tmp_path, tiny_folder, toy_pairs, replace(RESUME, **change))
    out = capsys.readouterr().out
    (name,) = change
    assert "belongs to a run with other settings" in out and "continuing" not in out
    assert f"{name}: {getattr(RESUME, name)} there, {change[name]} here" in out
    run_on(tmp_path, tiny_folder, toy_pairs)  # and nothing of the first run was lost
    assert "continuing after step 6" in capsys.readouterr().out


def test_a_finished_run_is_not_run_again(tiny_folder, toy_pairs, tmp_path, monkeypatch) -> None:
    whole = run_on(tmp_path, tiny_folder, toy_pairs)
    stop_after(monkeypatch, 0, AssertionError)
    again = run_on(tmp_path, tiny_folder, toy_pairs)
    assert again.history == whole.history and equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


@pytest.mark.parametrize(
    ("scores", "best"), [([0.2, 0.9, 0.5], 3), ([0.2, 0.3, 0.5], 6), ([0.7, 0.3, 0.5], 0), ([0.5, 0.5, 0.5], 0)]
)
def test_adapter_with_the_best_dev_score_is_kept(moved, toy_pairs, toy_task, scores, best) -> None:
    pairs, kept = Pairs(toy_pairs.rows, scripted(toy_task, scores)), {}
    honest = run_module.Trainer._probe

    def probe(self) -> bool:
        kept[self.state.step] = self.policy.adapter_tensors()
        return honest(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Trainer, "_probe", probe)
        run = train(moved, pairs, CONFIG, show=False)
    assert [p["step"] for p in run.probes] == [0, 3, 6] and [p["score"] for p in run.probes] == pytest.approx(scores)
    assert run.best_step == best and equal(run.model.adapter_tensors(), kept[best])
    assert not equal(kept[0], kept[3]) and not equal(kept[3], kept[6])
    assert ("the model is unchanged" in repr(run)) == (best == 0)
    assert all(p["prompts"] == 4 and {"chosen_logratio", "rejected_logratio"} <= set(p) for p in run.probes)


def test_best_adapter_from_before_the_stop_is_kept(tiny_folder, toy_pairs, toy_task, tmp_path, monkeypatch) -> None:
    """Best after step 2, stopped after 5, resumed from 4 with nothing better to come."""

    def go(folder, scores: list[float]) -> Run:
        return run_on(folder, tiny_folder, Pairs(toy_pairs.rows, scripted(toy_task, scores)))

    whole = go(tmp_path / "whole", [0.1, 0.9, 0.2, 0.3])
    stop_after(monkeypatch, 5, RuntimeError)
    with pytest.raises(RuntimeError):
        go(tmp_path / "cut", [0.1, 0.9, 0.2])
    monkeypatch.undo()
    again = go(tmp_path / "cut", [0.3])
    assert again.best_step == whole.best_step == 2 and again.probes == whole.probes
    assert equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


def test_interrupt_keeps_history_and_the_best_adapter(moved, toy_pairs, toy_task, monkeypatch, capsys) -> None:
    stop_after(monkeypatch, 4, KeyboardInterrupt)
    run = train(moved, Pairs(toy_pairs.rows, scripted(toy_task, [0.9, 0.1])), CONFIG, show=False)
    assert not run.finished and len(run.history) == 4 and run.best_step == 0
    assert equal(run.model.adapter_tensors(), moved.adapter_tensors())
    assert "interrupted after 4 of 6 steps" in capsys.readouterr().out and "(interrupted)" in repr(run)


def test_settings_that_do_not_fit_are_refused_before_anything_is_computed(moved, toy_pairs, monkeypatch) -> None:
    def no_pass(*args, **settings):
        raise AssertionError("the reference was computed first")

    monkeypatch.setattr(run_module, "reference_logps", no_pass)
    for change in ({"loss": "dpo"}, {"label_smoothing": 0.1}, {"dpop_lambda": 3.0}):
        with pytest.raises(WorkbenchError):
            train(moved, toy_pairs, replace(CONFIG, **change), show=False)


def test_interrupt_between_update_and_history_keeps_the_best_adapter(moved, toy_pairs, toy_task, monkeypatch) -> None:
    honest, calls = loop.train_step, []

    def late(*args):
        calls.append(honest(*args))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(loop, "train_step", late)
    run = train(moved, Pairs(toy_pairs.rows, scripted(toy_task, [0.9])), CONFIG, show=False)
    assert run.history == [] and equal(run.model.adapter_tensors(), moved.adapter_tensors())


def test_sft_learns_the_references(tiny, toy_task) -> None:
    config = replace(CONFIG, epochs=12, lr=3e-2, probes=0)
    run = sft(tiny, toy_task.train, config, show=False)
    assert len(run.history) == 36 and tiny.adapter is None and run.model.adapter
    assert run.history[-1]["loss"] < 0.5 * run.history[0]["loss"]
    assert run.history[-1]["mean_logps"] == pytest.approx(-run.history[-1]["loss"], rel=0.2)


def test_sft_on_pairs_takes_each_chosen_answer_once(tiny, toy_pairs, monkeypatch) -> None:
    twice = Pairs([*toy_pairs.rows, *(replace(p, id=f"{p.id}b", rejected="no: 99") for p in toy_pairs)], toy_pairs.task)
    seen = []
    honest = run_module.tokenize
    monkeypatch.setattr(run_module, "tokenize", lambda m, rows, *n: honest(m, seen.append(list(rows)) or seen[-1], *n))
    sft(tiny, twice, replace(CONFIG, epochs=1, probes=0), show=False)
    assert sorted(answers for _, _, answers in seen[0]) == sorted((p.chosen,) for p in toy_pairs)


def test_sft_resumes_too(tiny_folder, toy_task, tmp_path, monkeypatch) -> None:
    def go(folder) -> Run:
        model = load_model(tiny_folder, device="cpu", dtype=torch.float32)
        return sft(model, toy_task.train, replace(CONFIG, probes=3), folder=folder, show=False)

    whole = go(tmp_path / "whole")
    stop_after(monkeypatch, 3, KeyboardInterrupt)
    assert not go(tmp_path / "cut").finished
    monkeypatch.undo()
    again = go(tmp_path / "cut")
    assert again.history == whole.history and equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


def test_unknown_loss_and_no_examples_raise(moved, toy_pairs, toy_task) -> None:
    with pytest.raises(WorkbenchError, match="`loss` must be one of sigmoid, cdpo, .*Got 'dpo'. Did you mean"):
        train(moved, toy_pairs, replace(CONFIG, loss="dpo"), show=False)
    with pytest.raises(WorkbenchError, match="needs examples. Got none"):
        sft(moved, toy_task.train[:0], CONFIG, show=False)


def test_plain_lines_are_printed(moved, toy_pairs, capsys) -> None:
    train(moved, toy_pairs, CONFIG)
    out = capsys.readouterr().out
    assert "step 6/6 loss" in out and "probe at step 0: dev score" in out
    train(moved, toy_pairs, CONFIG, show=False)
    assert capsys.readouterr().out == ""


def test_checkpoint_is_plain_json_and_safetensors(tiny_folder, toy_pairs, tmp_path) -> None:
    run_on(tmp_path, tiny_folder, toy_pairs)
    newest = sorted((tmp_path / "checkpoints").glob("*/step-*"))[-1]
    assert {p.suffix for p in newest.iterdir()} == {".json", ".safetensors"}
    assert json.loads((newest / "state.json").read_text())["step"] == 6
    shutil.rmtree(tmp_path / "reference")


def signal_at(monkeypatch, n: int, *numbers: int, wait: float = 0.0) -> None:
    """Signals arrive in the middle of the n-th micro-batch."""
    honest, calls = losses.Preference.loss, []

    def signalled(self, network, batch, rows, step):
        calls.append(1)
        if len(calls) == n:
            for k, number in enumerate(numbers):
                time.sleep(wait * k)
                signal.raise_signal(number)
        return honest(self, network, batch, rows, step)

    monkeypatch.setattr(losses.Preference, "loss", signalled)


def last_files(folder) -> dict[str, bytes]:
    newest = sorted(folder.glob("checkpoints/*/step-*"))[-1]
    return {p.name: p.read_bytes() for p in newest.iterdir() if p.suffix == ".safetensors"}


def test_ctrl_c_saves_between_probes_and_says_how_to_go_on(
    tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys
) -> None:
    """In the fifth step: its update is finished, and the run goes on from there in the same bits."""
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    before = signal.getsignal(signal.SIGINT)
    signal_at(monkeypatch, 5, signal.SIGINT, signal.SIGINT)  # a launcher passes it on: twice in an instant is once
    monkeypatch.setattr("sys.argv", ["/bin/dpo-workbench", "train", "my pairs.jsonl"])
    cut = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert not cut.finished and len(cut.history) == 5 and cut.history == whole.history[:5]
    out = capsys.readouterr().out
    assert "interrupted after 5 of 6 steps" in out and "To continue, type: dpo-workbench train 'my pairs.jsonl'" in out
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert "continuing after step 5" in capsys.readouterr().out
    assert again.history == whole.history and again.probes == whole.probes
    assert last_files(tmp_path / "cut") == last_files(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys) -> None:
    signal_at(monkeypatch, 4, signal.SIGINT, signal.SIGINT, wait=1.1)
    cut = run_on(tmp_path, tiny_folder, toy_pairs)
    assert not cut.finished and len(cut.history) == 3  # the fourth step was left in the middle, and nothing saved
    monkeypatch.undo()
    assert run_on(tmp_path, tiny_folder, toy_pairs).finished
    assert "continuing after step 2" in capsys.readouterr().out


def test_sigterm_saves_and_is_then_obeyed(tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys) -> None:
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        signal_at(monkeypatch, 3, signal.SIGTERM)
        cut = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
        assert not cut.finished and len(cut.history) == 3 and got == [signal.SIGTERM]  # by the handler of before
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    capsys.readouterr()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert "continuing after step 3" in capsys.readouterr().out and again.history == whole.history


def test_an_interrupt_in_a_probe_does_the_probe_again(tiny_folder, toy_pairs, tmp_path, monkeypatch) -> None:
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    honest, calls = run_module.generate, []

    def signalled(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return honest(*args, **kwargs)

    monkeypatch.setattr(run_module, "generate", signalled)
    cut = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert not cut.finished and len(cut.history) == 2 and [p["step"] for p in cut.probes] == [0]
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert again.history == whole.history and again.probes == whole.probes
    assert equal(again.model.adapter_tensors(), whole.model.adapter_tensors())


def test_a_signal_at_the_very_end_is_not_swallowed(moved, toy_pairs, monkeypatch) -> None:
    signal_at(monkeypatch, 6, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(moved, toy_pairs, replace(CONFIG, probes=0), show=False)


def test_training_in_another_thread_leaves_signals_alone(moved, toy_pairs) -> None:
    runs: list[Run] = []
    before = signal.getsignal(signal.SIGTERM)
    worker = threading.Thread(
        target=lambda: runs.append(train(moved, toy_pairs, replace(CONFIG, probes=0), show=False))
    )
    worker.start()
    worker.join()
    assert runs[0].finished and signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_stops_no_run(tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys) -> None:
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    honest = run_module.save_checkpoint

    def full(folder, tensors, facts, settings) -> None:
        if facts["step"] == 4:
            raise WorkbenchError("Results must be written to x. The system says: No space left on device.")
        honest(folder, tensors, facts, settings)

    monkeypatch.setattr(run_module, "save_checkpoint", full)
    stop_after(monkeypatch, 5, RuntimeError)
    with pytest.raises(RuntimeError):
        run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    out = capsys.readouterr().out
    assert "no checkpoint after step 4. Results must be written" in out and "Training continues." in out
    monkeypatch.undo()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    assert "continuing after step 2" in capsys.readouterr().out and again.history == whole.history


@pytest.mark.parametrize("change", [{"micro_tokens": 60}, {"checkpointing": True}, {"checkpoint_seconds": 0.0}])
def test_settings_that_do_not_change_the_result_may_differ(
    tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys, change
) -> None:
    """As on a smaller GPU: the run continues, and uses the new settings."""
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    stop_after(monkeypatch, 3, RuntimeError)
    with pytest.raises(RuntimeError):
        run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    monkeypatch.undo()
    capsys.readouterr()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs, replace(RESUME, **change))
    assert "continuing after step 2" in capsys.readouterr().out
    chosen = {"micro_tokens": 1536, "checkpointing": False}  # on a CPU with enough memory
    assert "checkpoint_seconds" in change or again.config == replace(RESUME, **(chosen | change))
    assert [h["loss"] for h in again.history] == pytest.approx([h["loss"] for h in whole.history], abs=1e-5)


def test_a_size_that_memory_forced_is_kept_after_a_stop(tiny_folder, toy_pairs, tmp_path, monkeypatch, capsys) -> None:
    honest = losses.answer_logps

    def limited(network, batch):
        if batch.input_ids.numel() > 70 and torch.is_grad_enabled():
            raise MemoryError
        return honest(network, batch)

    monkeypatch.setattr(losses, "answer_logps", limited)
    whole = run_on(tmp_path / "whole", tiny_folder, toy_pairs)
    assert whole.config.micro_tokens < 70 and "memory ran out" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4, RuntimeError)
        with pytest.raises(RuntimeError):
            run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    capsys.readouterr()
    again = run_on(tmp_path / "cut", tiny_folder, toy_pairs)
    out = capsys.readouterr().out
    assert "memory ran out" not in out and again.config == whole.config
    assert again.history == whole.history and last_files(tmp_path / "cut") == last_files(tmp_path / "whole")


def test_fp16_learns_as_fp32_does_and_resumes_with_its_loss_scale(
    tiny, tiny_folder, toy_pairs, monkeypatch, capsys, tmp_path
) -> None:
    config = replace(CONFIG, probes=0, held_out=0.0, lr=1e-3, checkpoint_seconds=0.0)
    want = train(tiny, toy_pairs, config, show=False).history
    honest, scales = loop.train_step, {}

    def start(policy, config):
        state = loop.TrainState(policy, config)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
        return state

    stop_at: list[int] = []

    def watched(state, *rest):
        if state.step in stop_at:
            raise RuntimeError
        metrics = honest(state, *rest)
        if metrics:
            scales[state.step] = state.scaler.get_scale()
        return metrics

    def go(folder) -> Run:
        half = load_model(tiny_folder, device="cpu", dtype=torch.float16)
        return train(half, toy_pairs, config, folder=folder, show=False)

    monkeypatch.setattr(run_module, "TrainState", start)
    monkeypatch.setattr(loop, "train_step", watched)
    whole, scales_of_whole = go(tmp_path / "whole"), scales.copy()
    assert capsys.readouterr().out.count("the loss scale is now") > 3
    assert scales_of_whole[0] < 2.0**37 and scales_of_whole[5] > scales_of_whole[0]  # halved, and grown again
    for got, right in zip(whole.history, want, strict=True):
        assert got["loss"] == pytest.approx(right["loss"], abs=0.02)

    scales.clear()
    stop_at.append(3)
    with pytest.raises(RuntimeError):
        go(tmp_path / "cut")
    stop_at.clear()
    scales.clear()
    again = go(tmp_path / "cut")
    assert min(scales) == 3 and scales == {k: v for k, v in scales_of_whole.items() if k >= 3}
    assert again.history == whole.history and equal(again.model.adapter_tensors(), whole.model.adapter_tensors())
