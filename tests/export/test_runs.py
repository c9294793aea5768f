"""What leaves the workbench: TRL's losses equal this loop's on two processes, and merged logits."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from dpo_workbench import cli
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.export import runs as export_module
from dpo_workbench.export.runs import export_merged, export_trl
from dpo_workbench.models import files
from dpo_workbench.models.loading import load_adapter, load_model
from dpo_workbench.pairs.messages import messages_of
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import record_run, train

# a clipping so short that Adam's epsilon counts: at 1.0 Adam undoes the length, and a wrong clipping would not show
CONFIG = TrainConfig(
    lr=1e-3, batch_size=4, epochs=2, probes=0, held_out=0.0, warmup=0.4, seed=3, max_grad_norm=1e-5, nll_weight=0.2
)
ODD = 'He said "it\'s 5 €" <b>&amp;</b>\r\n\ttab \\n 日本 \u2028 é e\u0301 \U0001f600 \ufeff\x07'
EARLIER = [("system", "Read receipts."), ("user", "TOTAL 7 EUR"), ("assistant", '{"total": 7}')]
ROWS = [
    Pair(
        f"p{k}",
        [*EARLIER[: 3 * (k == 6)], ("user", f"TOTAL {k}.50 EUR\nMilk 1.2{k} {ODD if k == 1 else ''}")],
        json.dumps({"total": k + 0.5}) + (ODD if k == 2 else ""),
        '{"total": null' + "," * k + (ODD if k == 4 else ""),
        rejected_finished=k != 3,
        weight=2.0 if k == 5 else 1.0,
    )
    for k in range(10)
]


def nano():
    return load_model("nano", adapter="receipts", device="cpu")


def losses(pairs: Pairs, config: TrainConfig, model=None) -> list[float]:
    return [h["loss"] for h in train(model or nano(), pairs, config, show=False).history]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of nano from its fine-tuned adapter: batches of 4, 4 and 2, twice."""
    folder = tmp_path_factory.mktemp("run")
    model, pairs = nano(), Pairs(ROWS)
    record_run(folder, model, pairs, CONFIG)
    run = train(model, pairs, CONFIG, folder=folder, show=False)
    run.model.save(folder / "adapter")
    (folder / "history.json").write_text(json.dumps(run.history))
    return folder


@pytest.fixture(scope="module")
def project(run_folder) -> Path:
    return export_trl(run_folder, run_folder / "trl").folder


@pytest.fixture(scope="module")
def trained(project) -> list[dict]:
    """TRL's log of the exported project on two processes; one entry a step."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*launch, project / "train.py"], capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("'loss':") == 6  # the second process is silent: it is not a second training
    state = project / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    return [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


@pytest.mark.slow
def test_trl_on_two_processes_has_this_loops_losses(run_folder, trained) -> None:
    ours = json.loads((run_folder / "history.json").read_text())
    assert len(ours) == len(trained) == 6
    for mine, theirs in zip(ours, trained, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
    assert ours[0]["loss"] - ours[4]["loss"] > 0.3  # they move


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"beta": 0.2},
        {"nll_weight": 0.0},
        {"lr": 1.2e-3},
        {"warmup": 0.1},
        {"max_grad_norm": 1.0},
        {"loss": "ipo"},
        {"batch_size": 5},
        {"alpha": 64},
    ],
)
def test_other_settings_have_other_losses(trained, change) -> None:
    """Negative control of the test above: one setting that the export left out would show."""
    config = replace(CONFIG, **change)
    model = load_model("nano", device="cpu") if "alpha" in change else None  # the fine-tuned adapter brings its own
    gaps = [abs(t["loss"] - mine) for t, mine in zip(trained[:5], losses(Pairs(ROWS), config, model), strict=False)]
    assert max(gaps) > 1e-3


@pytest.mark.slow
def test_an_end_token_after_a_cut_answer_has_other_losses(trained) -> None:
    ended = [replace(p, rejected_finished=True) for p in ROWS]
    gaps = [abs(t["loss"] - mine) for t, mine in zip(trained[:5], losses(Pairs(ended), CONFIG), strict=False)]
    assert max(gaps) > 1e-4


@pytest.mark.slow
def test_trls_adapter_comes_back(run_folder, project, trained) -> None:
    ours = load_adapter(nano(), run_folder / "adapter").adapter_tensors()
    theirs = load_adapter(nano(), project / "trained").adapter_tensors()
    start = nano().adapter_tensors()
    moved = max((v - start[k]).abs().max().item() for k, v in ours.items())
    assert moved > 1e-3
    assert max((v - theirs[k]).abs().max().item() for k, v in ours.items()) < 0.05 * moved


def test_script_is_short_and_made_of_the_folders_files_only(project) -> None:
    text = (project / "train.py").read_text()
    assert text.count("\n") <= 64 and max(map(len, text.splitlines())) <= 120
    compile(text, "train.py", "exec")
    assert "dpo_workbench" not in text and str(project.parent) not in text + (project / "config.json").read_text()
    assert {p.name for p in project.iterdir()} >= {"adapter", "model", "tokenizer", "pairs.jsonl", "steps.jsonl"}
    assert json.loads((project / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "model"


def test_readme_says_how_to_use_several_gpus(project) -> None:
    text = (project / "README.md").read_text()
    assert "10 pairs, 6 steps with 4 pairs each" in text and not {"N_PAIRS", "N_STEPS", "BATCH_SIZE"} & set(
        text.split()
    )
    assert "accelerate launch --multi_gpu --num_processes 4 train.py" in text
    for name in ("config.json", "pairs.jsonl", "steps.jsonl", "adapter", "model", "tokenizer", "requirements.txt"):
        assert name in text and (project / name).exists()


def test_ids_and_texts_are_the_runs(project) -> None:
    model = nano()
    end = model.tokenizer.eos_token_id
    for row, pair in zip(lines(project / "pairs.jsonl"), ROWS, strict=True):
        said = [[{"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
        assert (row["id"], row["prompt"], row["chosen"], row["rejected"]) == (pair.id, messages_of(pair.prompt), *said)
        assert row["prompt_ids"] == model.chat.prompt_ids(pair.prompt)
        assert (
            row["chosen_ids"] == model.chat.answer_ids(pair.prompt, pair.chosen) and row["chosen_ids"].count(end) == 1
        )
        assert row["rejected_ids"].count(end) == pair.rejected_finished
    steps = lines(project / "steps.jsonl")
    assert [len(step["pairs"]) for step in steps] == [4, 4, 2, 4, 4, 2]
    names = [name for step in steps for name in step["pairs"]]
    assert sorted(names[:10]) == sorted(names[10:]) == [p.id for p in ROWS] and names[:10] != names[10:]


def test_processes_must_divide_the_batch(project, monkeypatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit, match="batch_size must be a multiple of the pairs computed at once. Got 4 and 3"):
        runpy.run_path("train.py")


def recorded(folder: Path, model, config: TrainConfig = CONFIG) -> Path:
    record_run(folder, model, Pairs(ROWS), config)
    return folder


def test_a_fresh_adapter_is_exported_as_it_began(tiny, tmp_path) -> None:
    tiny.network.config._commit_hash = None
    out = export_trl(recorded(tmp_path / "run", tiny), tmp_path / "out").folder
    begun = load_adapter(tiny, out / "adapter").adapter_tensors()
    want = tiny.with_new_adapter(rank=CONFIG.rank, alpha=CONFIG.alpha, seed=CONFIG.seed).adapter_tensors()
    assert begun.keys() == want.keys() and all(torch.equal(v, want[k]) for k, v in begun.items())
    copied = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    original = AutoModelForCausalLM.from_pretrained(tiny.source).state_dict()
    assert copied.keys() == original.keys() and all(torch.equal(v, original[k]) for k, v in copied.items())


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory, make_tiny_folder) -> Path:
    """A random Qwen3 (normalized queries and keys, tied embeddings) with the tokenizer of the tiny model."""
    folder = make_tiny_folder(tmp_path_factory.mktemp("qwen") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    for file in folder.glob("*.safetensors"):
        file.unlink()
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_qwen3_in_fp32_trains_and_is_exported(qwen_folder, tmp_path) -> None:
    """Its attention once failed in training with "view size is not compatible"."""
    config = replace(CONFIG, epochs=1, rank=4, max_tokens=2000)
    model = load_model(qwen_folder, device="cpu", dtype=torch.float32)
    run = recorded(tmp_path / "run", model, config)
    trained = train(model, Pairs(ROWS), config, folder=run, show=False)
    trained.model.save(run / "adapter")
    project = export_trl(run, tmp_path / "trl").folder
    merged = AutoModelForCausalLM.from_pretrained(export_merged(run, tmp_path / "merged").folder)

    base = AutoModelForCausalLM.from_pretrained(project / "model")
    policy = PeftModel.from_pretrained(base, project / "adapter")
    pair = lines(project / "pairs.jsonl")[0]
    ids = torch.tensor([pair["prompt_ids"] + pair["chosen_ids"]])
    with torch.no_grad(), model.active() as network:
        want = network(input_ids=ids).logits
        assert torch.allclose(policy(input_ids=ids).logits, want, atol=1e-5)  # LoRA's start changes nothing
    with torch.no_grad(), trained.model.active() as network:
        assert torch.allclose(merged(input_ids=ids).logits, network(input_ids=ids).logits, atol=1e-4)


def test_a_model_of_the_hub_is_named_not_copied(tiny, tmp_path, monkeypatch) -> None:
    tiny.network.config._commit_hash = "abc123"
    hub = replace(tiny, name="owner/name", source="owner/name")
    monkeypatch.setattr(export_module, "load_model", lambda *a, **k: hub)
    out = export_trl(recorded(tmp_path / "run", hub), tmp_path / "out").folder
    want = {"pretrained_model_name_or_path": "owner/name", "revision": "abc123", "dtype": "float32"}
    assert json.loads((out / "config.json").read_text())["model"] == want and not (out / "model").exists()


def test_all_settings_of_a_run_are_thought_of() -> None:
    """A new setting fails here: carry it over in `export_trl`, or refuse what TRL cannot do, then name it below."""
    carried = (
        "loss beta nll_weight label_smoothing lr epochs batch_size warmup max_grad_norm rank alpha max_tokens held_out"
        " seed"
    )
    refused = "dpop_lambda simpo_gamma"  # with their losses
    same_result = "micro_tokens packing checkpointing checkpoint_seconds probes report_to"
    assert {f.name for f in fields(TrainConfig)} == {*carried.split(), *refused.split(), *same_result.split()}


def test_a_loss_that_trl_lacks_is_refused(tiny, tmp_path) -> None:
    for name, loss in {"dpop": "dpop", "sft": {"sigmoid": 1.0, "sft": 0.5}}.items():
        run = recorded(tmp_path / name, tiny, replace(CONFIG, loss=loss))
        with pytest.raises(WorkbenchError, match=f"TRL's DPOTrainer must have the run's loss. Got '{name}'"):
            export_trl(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_sums_of_losses_are_named_as_trl_names_them(tiny, tmp_path) -> None:
    config = replace(CONFIG, loss={"robust": 0.75, "apo_zero": 0.25}, label_smoothing=0.1, nll_weight=0.5)
    out = export_trl(recorded(tmp_path / "run", tiny, config), tmp_path / "out").folder
    trl = json.loads((out / "config.json").read_text())["trl"]
    assert (trl["loss_type"], trl["loss_weights"]) == (["robust", "apo_zero", "sft"], [0.75, 0.25, 0.5])
    assert trl["label_smoothing"] == 0.1


@pytest.mark.parametrize("export", [export_trl, export_merged])
def test_a_folder_in_use_is_refused(tiny, tmp_path, export) -> None:
    run = recorded(tmp_path / "runs" / "run", tiny)
    tiny.with_new_adapter().save(run / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    export(run, out)  # an empty one may be taken
    (out / "mine.txt").write_text("kept")
    with pytest.raises(WorkbenchError, match="The new folder must be empty"):
        export(run, out)
    assert (out / "mine.txt").read_text() == "kept"
    export(run, out, force=True)
    assert not (out / "mine.txt").exists()
    for place in (run, run.parent):
        with pytest.raises(WorkbenchError, match="must not replace the run"):
            export(run, place, force=True)
    assert (run / "run.json").is_file()


def test_changed_weights_and_missing_parts_are_refused(make_tiny_folder, tmp_path) -> None:
    source = make_tiny_folder(tmp_path / "model")
    run = recorded(tmp_path / "run", load_model(source, device="cpu", dtype=torch.float32))
    with pytest.raises(WorkbenchError, match="must contain the trained adapter"):
        export_merged(run, tmp_path / "out")
    export_trl(run, tmp_path / "out")  # negative control: the same weights
    make_tiny_folder(source, seed=1)
    with pytest.raises(WorkbenchError, match="must be the one that the run started with"):
        export_trl(run, tmp_path / "out", force=True)
    with pytest.raises(WorkbenchError, match="A run folder must hold a complete run.json"):
        export_trl(tmp_path, tmp_path / "out2")
    (run / "run.json").write_text("{")
    with pytest.raises(WorkbenchError, match="must hold a complete run.json"):
        export_trl(run, tmp_path / "out2")


def test_a_demos_folder_stands_for_its_dpo_run(tiny, tmp_path) -> None:
    recorded(tmp_path / "demo" / "dpo", tiny)
    assert export_trl(tmp_path / "demo", tmp_path / "out").notes[0] == "10 pairs, 6 steps of 4"


def logits(network, model) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.tensor([model.chat.prompt_ids("TOTAL 3.50 EUR")])).logits


def test_merged_model_computes_what_the_adapter_does(run_folder, tmp_path) -> None:
    out = export_merged(run_folder, tmp_path / "out").folder
    assert not list(out.glob("*.bin")) and (out / "generation_config.json").is_file()
    plain = AutoModelForCausalLM.from_pretrained(out)
    model = load_adapter(nano(), run_folder / "adapter")
    with model.active() as network:
        want = logits(network, model)
    assert (logits(plain, model) - want).abs().max() < 1e-4
    with nano().active() as network:
        assert (logits(network, model) - want).abs().max() > 1e-2  # negative control: the start is another model
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == model.tokenizer.chat_template
    assert tokenizer(ODD)["input_ids"] == model.tokenizer(ODD)["input_ids"]
    assert plain.generation_config.eos_token_id == [tokenizer.eos_token_id]


def test_smols_template_and_the_end_of_training_go_along(make_tiny_folder, tmp_path, monkeypatch) -> None:
    source = make_tiny_folder(tmp_path / "model")
    settings = source / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 7}))
    monkeypatch.setattr(files, "smol_folder", lambda weights: source)
    model = load_model("smol", device="cpu", dtype=torch.bfloat16)
    run = recorded(tmp_path / "run", model)
    model.with_new_adapter().save(run / "adapter")
    out = export_merged(run, tmp_path / "out").folder
    assert AutoTokenizer.from_pretrained(out).chat_template == files.CHATML
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.generation_config.eos_token_id == model.chat.stop_ids and merged.dtype == torch.bfloat16


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path) -> None:
    run = recorded(tmp_path / "run", tiny)
    broken = tiny.with_new_adapter()
    broken.set_adapter_tensors({k: v * float("nan") for k, v in broken.adapter_tensors().items()})
    broken.save(run / "adapter")
    with pytest.raises(WorkbenchError, match="Merged weights must be finite"):
        export_merged(run, tmp_path / "out")


def test_from_the_command_line(tiny_folder, tmp_path) -> None:
    Pairs(ROWS).save(tmp_path / "pairs.jsonl")
    run, go = str(tmp_path / "run"), CliRunner().invoke
    trains = ["train", str(tmp_path / "pairs.jsonl"), "--out", run, "--model", str(tiny_folder), "-a", "none"]
    assert go(cli.app, [*trains, "--task", "", "--epochs", "1"]).exit_code == 0
    for arguments, file in {
        ("trl", run): "run/export/trl/train.py",
        ("merged", run): "run/export/merged/model.safetensors",
    }.items():
        done = go(cli.app, ["export", *arguments])
        assert done.exit_code == 0 and "Exported:" in done.output, done.output
        assert (tmp_path / file).is_file()
        assert isinstance(go(cli.app, ["export", *arguments]).exception, WorkbenchError)  # not empty any more
        assert go(cli.app, ["export", *arguments, "--force"]).exit_code == 0
