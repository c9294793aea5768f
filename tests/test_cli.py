"""The command line: help, errors as one paragraph, exit codes, and the commands that need no training."""

import io
import json
import shutil
from dataclasses import fields

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.builtin import load_task
from dpo_workbench.training.config import TrainConfig

COMMANDS = "demo tasks check mine train label agreement evaluate compare arms export".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert code == 0 and "Usage" in out and command in out and err == ""


def test_help_lists_all_commands(run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    code, out, err = run()
    assert code in (0, 2) and all(command in out + err for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nonsense",),
        ("mine", "--out", "x", "--sampels", "3"),
        ("nonsense",),
        ("train",),
        ("mine",),
        ("mine", "--out", "x", "--samples", "0"),
        ("mine", "--out", "x", "--samples", "many"),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, tmp_path) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and "--help" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_names_the_nearest(run) -> None:
    assert "--samples" in run("mine", "--out", "x", "--sampels", "3")[2]


def test_tasks(run) -> None:
    code, out, _ = run("tasks")
    assert code == 0 and "receipts" in out and "train 2480, dev 200, test 320" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "none.jsonl", "--out", "r"), "Got no file (none.jsonl, P001)"),
        (("mine", "--out", "r", "--model", "./none"), "The model './none' could not be loaded"),
        (("mine", "--out", "r", "--model", "a/b/c"), "The model 'a/b/c' could not be loaded"),
        (("evaluate", "--out", "r/x.json", "--task", "recipts"), "Did you mean 'receipts'"),
        (("evaluate", "--out", "r/x.json", "--split", "tset"), "in split 'tset'. It has train, dev, test"),
    ],
)
def test_an_error_is_one_paragraph(run, arguments, words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 1 and words in err and "Traceback" not in err
    assert err.startswith("error: ") and err.strip().count("\n") == 0


def test_markup_in_an_error_is_shown_as_it_is(run, monkeypatch) -> None:
    monkeypatch.setattr("dpo_workbench.task_names", lambda: (_ for _ in ()).throw(WorkbenchError("[red]x[/] [/b]")))
    code, _, err = run("tasks")
    assert code == 1 and "[red]x[/] [/b]" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("boom"), 1, "RuntimeError: boom. This is a bug: please report"),
        (MemoryError(), 1, "Memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to"), 1, "Lower --micro-tokens"),
        (KeyboardInterrupt(), 130, "Interrupted. What was saved is complete"),
    ],
)
def test_other_errors(run, monkeypatch, error: BaseException, code: int, words: str) -> None:
    def fails():
        raise error

    monkeypatch.setattr("dpo_workbench.task_names", fails)
    got, _, err = run("tasks")
    assert got == code and words in err and ("Traceback" in err) == ("bug" in words)


def test_mine_train_evaluate_on_a_tiny_model(run, tiny_folder, tmp_path) -> None:
    """The whole way by the shell. The tiny model fails everything, so the references are chosen."""
    model = ("--model", str(tiny_folder), "--adapter", "none")
    code, out, err = run("mine", "--out", "m", *model, "-n", "9", "--samples", "2")
    assert code == 0, err
    assert "headroom: 100 %" in out and "9 prompts, 18 samples" in out
    assert 1 <= len(Pairs.load(tmp_path / "m" / "pairs.jsonl")) <= 9  # empty answers are not rejected ones
    assert json.loads((tmp_path / "m" / "mined.json").read_text())["settings"]["samples"] == 2


def test_mine_aims_at_named_classes_and_leaves_prompts_out(run, tiny_folder, tmp_path) -> None:
    model = ("--model", str(tiny_folder), "--adapter", "none")
    aim = ("--skip", "2400", "-n", "3", "--samples", "2", "--target", "invalid_json")
    code, out, err = run("mine", "--out", "m", *model, *aim)
    assert code == 0 and "samples fail as invalid_json" in out and "better endings found" in out, err
    mined = json.loads((tmp_path / "m" / "mined.json").read_text())
    assert [row["example"] for row in mined["rows"]] == ["train-2400", "train-2401", "train-2402"]
    assert mined["settings"]["branch"]["classes"] == ["invalid_json"]


def test_train_writes_an_adapter(run, tiny_folder, tmp_path) -> None:
    Pairs([Pair(f"p{k}", f"q {k}", "yes", "no") for k in range(3)]).save(tmp_path / "pairs.jsonl")
    arguments = ("train", "pairs.jsonl", "--out", "t", "--model", str(tiny_folder), "-a", "none", "--task", "")
    code, out, err = run(*arguments, "--epochs", "2", "--loss", "ipo=0.5", "--loss", "hinge=1")
    assert code == 0, err
    assert "Run: 2 steps" in out and (tmp_path / "t" / "adapter" / "adapter_model.safetensors").is_file()
    code, _, err = run(*arguments, "--loss", "dop")
    assert code == 1 and "`loss` must be one of sigmoid, cdpo, " in err and "Got 'dop'. Did you mean 'dpop'?" in err


def test_train_takes_every_field_of_the_config(run, tiny_folder, tmp_path) -> None:
    Pairs([Pair(f"p{k}", f"q {k}", "yes", "no") for k in range(6)]).save(tmp_path / "pairs.jsonl")
    arguments = ("train", "pairs.jsonl", "--out", "t", "--model", str(tiny_folder), "-a", "none", "--task", "")
    help_text = run("train", "--help")[1]
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in help_text, field.name
    settings = "--batch-size 2 --rank 4 --nll-weight 0.5 --alpha 8 --held-out 0 --warmup 2e-1 --loss ipo --no-packing"
    code, _, err = run(*arguments, "--epochs", "1", "--max-tokens", "900", *settings.split())
    assert code == 0, err
    saved = json.loads((tmp_path / "t" / "run.json").read_text())["config"]
    want = {"epochs": 1, "batch_size": 2, "rank": 4, "nll_weight": 0.5, "alpha": 8, "held_out": 0, "max_tokens": 900}
    want |= {"warmup": 0.2, "loss": "ipo", "packing": False}
    defaults = {k: v for k, v in TrainConfig().to_dict().items() if k not in want}
    assert saved == defaults | want
    for wrong, code, words in (
        ("--warmpu 0.2", 2, "--warmup"),
        ("--rank many", 2, "--rank"),
        ("--rank 0", 1, "`rank` must be above 0"),
        ("--loss ipo --loss hinge=1", 1, "`--loss` takes NAME=VALUE"),
        ("--loss ipo=much", 1, "`--loss` takes NAME=VALUE"),
    ):
        got, _, err = run(*arguments, *wrong.split())
        assert got == code and words in err


def test_a_built_in_task_is_found_by_its_prompts(run, tiny_folder, tmp_path) -> None:
    """A verifier of another task must not decide which adapter is kept."""
    Pairs([Pair(f"p{k}", f"q {k}", "yes", "no") for k in range(3)]).save(tmp_path / "pairs.jsonl")
    code, out, err = run("train", "pairs.jsonl", "--out", "t", "--model", str(tiny_folder), "--epochs", "1")
    assert code == 0 and "of no built-in task" in " ".join(out.split()) and "Dev score" not in out, err
    prompts = [example.prompt for example in load_task("science").train[:3]]
    mined = Pairs([Pair(f"p{k}", prompt, "yes", "no") for k, prompt in enumerate(prompts)])
    mined.save(tmp_path / "mined.jsonl")
    code, out, err = run("train", "mined.jsonl", "--out", "u", "--model", str(tiny_folder), "--epochs", "1")
    assert code == 0 and "Dev score" in out and "of no built-in task" not in out, err


def test_label_and_agreement_from_the_shell(run, tmp_path, monkeypatch) -> None:
    Pairs([Pair(f"p{k}", f"q {k}", "yes", "no") for k in range(3)]).save(tmp_path / "pairs.jsonl")
    for rater in ("ann", "bob"):
        monkeypatch.setattr("sys.stdin", io.StringIO("2\na\nb\nq\n"))
        code, out, err = run("label", "pairs.jsonl", "--rater", rater)
        assert code == 0 and "2 of 3 labelled" in out, err
    code, out, err = run("agreement", "labels.jsonl", "-p", "pairs.jsonl", "--how", "weighted", "-o", "out.jsonl")
    assert code == 0 and "Labels: 4 by 2 raters on 2 pairs" in out and "What to do" in out, err


def check_file(folder, *texts: tuple[str, str, str]) -> str:
    rows = [dict(zip(("prompt", "chosen", "rejected"), text, strict=True)) for text in texts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pairs.jsonl"


def test_check_with_a_model(run, tmp_path, tiny_folder) -> None:
    """The pre-flight check needs no weights. Pairs that training refuses make the exit code 1, notes do not."""
    bare = shutil.copytree(tiny_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    file = check_file(tmp_path, ("q", "yes", "no"), ("p", "yes " * 20, "no"))
    code, out, err = run("check", file, "--model", str(bare), "--html", "page.html")
    assert code == 0 and "2 rows read" in out and "nothing to fix" in out and "answer 1 (" in out, err
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "default-src 'none'" in page and 'title="end token"' in page
    code, out, _ = run("check", file, "--model", str(bare), "--max-tokens", "15")
    assert code == 1 and "error: 1 of 2 pairs: A prompt with one answer must have at most max_tokens=15 tokens" in out
    code, out, _ = run("check", file, "--model", str(bare), "--max-tokens", "15", "--json")
    told = json.loads(out)
    assert code == 1 and told["file"]["kept"] == 2 and list(told["preflight"]["issues"][0]["rows"]) == ["row-2"]
    code, out, _ = run("check", file, "--json")
    assert code == 0 and json.loads(out)["preflight"] is None


def test_check_passes_arguments_of_the_template(run, tmp_path, make_tiny_folder) -> None:
    template = (
        "{{ note if note is defined and note }}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    folder, file = str(make_tiny_folder(tmp_path / "m", template)), check_file(tmp_path, ("q", "yes", "no"))
    for value, seen in (("hm", "'hm<|user|>q"), ("false", "'<|user|>q"), ("7", "'7<|user|>q")):
        assert f"no loss): {seen}" in run("check", file, "-m", folder, "--template", f"note={value}")[1]
    code, _, err = run("check", file, "--template", "note=x")
    assert code == 1 and "--template and --html need --model" in err
    code, _, err = run("check", file, "-m", folder, "--template", "nothing=1")
    assert code == 1 and "arguments that the chat template uses. Got 'nothing'" in err


def test_json_of_check_is_json_even_where_notes_are_printed(run, tmp_path, make_tiny_folder) -> None:
    folder = make_tiny_folder(tmp_path / "m", template=None)
    _, out, err = run("check", check_file(tmp_path, ("q", "yes", "no")), "-m", str(folder), "--json")
    assert json.loads(out)["preflight"]["pairs"] == 1 and "no chat template" in err
