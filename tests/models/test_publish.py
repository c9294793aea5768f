"""Publishing: the files and the card that leave a run, and their upload to a stand-in for the Hub's HTTP API."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.hub import code_block, plain
from dpo_workbench.evaluation.report import write_report
from dpo_workbench.evaluation.verdict import verdict
from dpo_workbench.models.loading import load_adapter, load_model
from dpo_workbench.models.publish import publish
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import sft, train

SECRET = "the text of a prompt"
HOSTILE = "--- `x` | <img src=x>\n# {{ 7 * 7 }} [a](b)"
CONFIG = TrainConfig(lr=1e-3, batch_size=4, epochs=1, probes=1, held_out=0.2)
PAIRS = Pairs([Pair(f"p{k}", f"{SECRET} {k}", f"yes {k}", f"no {k}", failure=HOSTILE) for k in range(10)])


class Hub(BaseHTTPRequestHandler):
    """The calls that create a repository and commit files to it, as huggingface_hub makes them."""

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.calls.append(f"POST {self.path}")
        if self.headers.get("Authorization") not in ("Bearer good", "Bearer reads"):
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.headers["Authorization"] == "Bearer reads":
            return self.answer({"error": "You don't have the rights to create a model under me"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repos else 200
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.repos.setdefault(name, {"private": private, "files": {}})
            return self.answer({"url": f"{hub.address}/{name.removeprefix('models/')}"}, status)
        if self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            kinds = {name: "lfs" if name.endswith(("safetensors", "parquet")) else "regular"
                     for name in (file["path"] for file in json.loads(body)["files"])}  # fmt: skip
            files = [{"path": name, "uploadMode": kind, "shouldIgnore": False} for name, kind in kinds.items()]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            found = [{**o, "actions": {"upload": {"href": f"{hub.address}/lfs/{o['oid']}"}}}
                     for o in json.loads(body)["objects"]]  # fmt: skip
            return self.answer({"objects": found, "transfer": "basic"})
        repo, branch = re.fullmatch(r"/api/(.+)/commit/(\w+)", self.path).groups()
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.repos[repo]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                hub.repos[repo]["files"][line["value"]["path"]] = hub.lfs[line["value"]["oid"]]
        return self.answer({"commitUrl": f"{hub.address}/{repo}/commit/1", "commitOid": "1" * 40})

    def do_GET(self) -> None:
        repo = self.server.repos.get(self.path.removeprefix("/api/").split("?")[0])
        if repo is None:
            return self.answer({"error": "Repository not found"}, 404)
        files = [{"rfilename": name} for name in repo["files"]]
        return self.answer({"id": "me/x", "private": repo["private"], "siblings": files, "sha": "0" * 40})

    def do_PUT(self) -> None:
        self.server.lfs[self.path.split("/")[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, value: dict, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.lfs, server.calls = {}, {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "good")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run():
    return train(load_model("nano", adapter="receipts", device="cpu"), PAIRS, CONFIG, show=False)


@pytest.fixture
def run_folder(run, tmp_path) -> Path:
    return run.save(tmp_path / "run")


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_hub_receives_the_folder_and_peft_loads_it(hub, run, run_folder, tmp_path) -> None:
    assert run.push_to_hub("me/my-model", license="mit") == f"{hub.address}/me/my-model"
    repo = hub.repos["models/me/my-model"]
    out = publish(run_folder, "me/my-model", license="mit", out=tmp_path / "out")
    assert repo == {"private": True, "files": written(Path(out))}
    assert set(repo["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors",
                                  "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(data_folder() / "nano", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(out)("TOTAL 3.50 EUR", return_tensors="pt")["input_ids"]
    with torch.no_grad(), run.model.active() as network:
        want, plain_base = network(input_ids=ids).logits, base(input_ids=ids).logits
        assert torch.allclose(PeftModel.from_pretrained(base, out)(input_ids=ids).logits, want, atol=1e-4)
    assert not torch.allclose(plain_base, want, atol=1e-2)  # negative control: without the adapter
    header = yaml.safe_load(repo["files"]["README.md"].decode().split("---\n")[1])
    assert header["license"] == "mit" and header["library_name"] == "peft"


def test_public_only_on_request(hub, run) -> None:
    run.push_to_hub("me/open", private=False)
    assert hub.repos["models/me/open"]["private"] is False


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def card(folder: Path, out: Path, **facts: object) -> str:
    return (Path(publish(folder, "me/my_model", out=out, **facts)) / "README.md").read_text()


def test_the_card_tells_data_settings_and_how_to_load(run_folder, tmp_path) -> None:
    edit(run_folder / "adapter" / "adapter_config.json", base_model_name_or_path="owner/Base-1.5B")
    text = card(run_folder, tmp_path / "out")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "owner/Base-1.5B"
    for part in ("# my_model\n", "10 preference pairs for 10 prompts; 2 of them", "| lr | 0.001 |", "human 10",
                 'AutoModelForCausalLM.from_pretrained("owner/Base-1.5B"', 'from_pretrained(base, "me/my_model")',
                 "vllm serve owner/Base-1.5B --tokenizer me/my_model --enable-lora --max-lora-rank 16",
                 "No comparison with a control is recorded for this run.", "what got worse, is unknown",
                 "training continued an earlier LoRA adapter",
                 "- 2 steps; at the last one the loss was", "- weights of the base model: float32"):  # fmt: skip
        assert part in text, part
    assert "&#45;-- &#96;x&#96; &#124; &lt;img src=x&gt; &#35; &#123;&#123; 7 &#42; 7" in text  # the failure class
    assert SECRET not in text and str(tmp_path) not in text and str(Path.home()) not in text


def test_the_card_tells_the_verdict(run_folder, tmp_path, arm) -> None:
    before = arm("/home/me/my runs/before", [HOSTILE] * 30 + [None] * 30)
    after = arm("after", [None] * 30 + ["loop"] * 10 + [None] * 20)
    decided = verdict(before, after, control=arm("control", [HOSTILE] * 29 + [None] * 31))
    text = card(run_folder, tmp_path / "out", verdict=decided)
    assert decided.outcome.capitalize() in text and "95 %" in text and "What got worse" in text
    for line in str(decided).splitlines():  # its table is a block of code
        assert (code_block(line) if "  " in line else plain(line)) in text
    assert "No comparison with a control" not in text and "/home/me" not in text
    assert "<img" not in "".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "No comparison with a control" in card(run_folder, tmp_path / "two", verdict=verdict(before, after))


def test_a_demos_verdict_is_read_from_its_folder(run, tmp_path, arm) -> None:
    run.save(tmp_path / "demo" / "dpo")
    arms = {"sft": arm("sft", ["loop"] * 30), "dpo": arm("dpo", [None] * 30)}
    decided = verdict(arms["sft"], arms["dpo"])
    found = {"outcome": decided.outcome, "text": str(decided), "numbers": decided.numbers}
    write_report(tmp_path / "demo", {"verdict": found}, arms, decided)
    assert card(tmp_path / "demo", tmp_path / "one") == card(tmp_path / "demo", tmp_path / "two", verdict=decided)
    (tmp_path / "demo" / "results.json").write_text('{"verdict": ')
    with pytest.raises(WorkbenchError, match="must hold a complete results.json"):
        card(tmp_path / "demo", tmp_path / "three")


def test_template_arguments_become_defaults_and_a_base_folder_is_refused(make_tiny_folder, tmp_path) -> None:
    source = make_tiny_folder(tmp_path / "model")
    file = source / "chat_template.jinja"
    file.write_text("{% if not think %}quick: {% endif %}" + file.read_text())
    model = load_model(source, device="cpu", dtype=torch.float32, template={"think": False})
    folder = sft(model, PAIRS, CONFIG, show=False).save(tmp_path / "run")
    with pytest.raises(WorkbenchError, match="must be one that others can load. Got the folder .*model. Upload it"):
        publish(folder, "me/x", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    edit(folder / "adapter" / "adapter_config.json", base_model_name_or_path="me/base")
    out = publish(folder, "me/x", out=tmp_path / "out")
    tokenizer, asked = AutoTokenizer.from_pretrained(out), [{"role": "user", "content": "hi"}]
    default, changed = (tokenizer.apply_chat_template(asked, tokenize=False, **k) for k in ({}, {"think": True}))
    assert default == "quick: " + changed
    text = (Path(out) / "README.md").read_text()
    assert "10 prompts with one answer each" in text and "'think': False" in text


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "me/", "me/a b", "../x", "me/ä", None])
def test_a_repository_is_owner_and_name(run_folder, hub, name) -> None:
    with pytest.raises(WorkbenchError, match="must be owner/name"):
        publish(run_folder, name)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("token", "says"),
    [("bad", "401.*hf auth login"), ("reads", "403.*Use a token with write access")],
)
def test_a_wrong_token_is_explained(run_folder, hub, monkeypatch, token, says) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WorkbenchError, match=f"(?s)The Hub must accept me/x. It did not: .*{says}"):
        publish(run_folder, "me/x")
    assert hub.repos == {}


def test_a_repository_in_use_is_left_alone(run_folder, hub) -> None:
    for name, private in (("full", True), ("open", False)):
        hub.repos[f"models/me/{name}"] = {"private": private, "files": {"mine.txt": b"1"}}
        with pytest.raises(WorkbenchError, match=f"The Hub must accept me/{name}.*A repository of this name exists"):
            publish(run_folder, f"me/{name}")
    assert not any("commit" in call for call in hub.calls)
    publish(run_folder, "me/new")  # negative control


def test_no_network(run_folder, hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkbenchError, match="The Hub must accept me/x. It did not: .*Check the network"):
        publish(run_folder, "me/x")


def test_nothing_is_uploaded_from_a_damaged_run(run_folder, hub, tmp_path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(WorkbenchError, match=match):
            publish(run_folder, "me/x")

    records, weights = run_folder / "training.json", run_folder / "adapter" / "adapter_model.safetensors"
    whole, tensors = records.read_text(), load_file(weights)
    edit(records, finished=False)
    refused("Only a finished run is published")
    records.write_text(whole[:100])
    refused("must hold a complete training.json")
    records.write_text(whole)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, weights)
    refused("must be finite")
    weights.unlink()
    refused("No such file.*adapter_model.safetensors")
    with pytest.raises(WorkbenchError, match="must hold a complete training.json.*No such file"):
        publish(tmp_path / "nothing", "me/x")
    save_file(tensors, weights)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(WorkbenchError, match="The new folder must be empty"):
        publish(run_folder, "me/x", out=tmp_path / "out")
    assert hub.calls == []
    publish(run_folder, "me/x")  # negative control: whole again


def test_pairs_go_to_the_hub_and_come_back(hub, tmp_path) -> None:
    assert PAIRS.push_to_hub("me/pairs") == f"{hub.address}/datasets/me/pairs"
    repo = hub.repos["datasets/me/pairs"]
    assert repo["private"] is True and set(repo["files"]) == {"README.md", "data/train-00000-of-00001.parquet"}
    assert "10 in 10 prompts" in repo["files"]["README.md"].decode()
    file = tmp_path / "train.parquet"
    file.write_bytes(repo["files"]["data/train-00000-of-00001.parquet"])
    loaded = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path))
    assert Pairs.from_dataset(loaded).rows == PAIRS.rows == Pairs.load(file).rows


def test_prompts_with_turns_come_back() -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a "}]
    pairs = Pairs([Pair("p0", turns, " x", "y", weight=2.0), Pair("p1", "plain", "x", "y\n", rejected_finished=False)])
    data = pairs.to_dataset()
    assert data[0]["prompt"] == turns and data[1]["chosen"] == [{"role": "assistant", "content": "x"}]
    assert Pairs.from_dataset(data).rows == pairs.rows


def test_from_the_command_line(run_folder, hub, tmp_path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from dpo_workbench import cli

    go = CliRunner().invoke
    done = go(cli.app, ["publish", str(run_folder), "me/a", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and (tmp_path / "out" / "README.md").is_file() and hub.calls == []
    done = go(cli.app, ["publish", str(run_folder), "me/a", "--public", "--license", "mit"])
    assert done.exit_code == 0 and f"published: {hub.address}/me/a" in done.output
    assert hub.repos["models/me/a"]["private"] is False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nano + /home/me/runs/adapter (A)", "nano + adapter (A)"),
        ("C:\\Users\\me\\runs\\b.jsonl", "b.jsonl"),
        ("~/runs/x, file:///root/y", "x, y"),
        ("runs/dpo and/or http://127.0.0.1:8000/v1", "runs/dpo and/or http://127.0.0.1:8000/v1"),
        ("0.5 of a_b - c", "0.5 of a_b - c"),
        ("1. _x_", "&#49;&#46; &#95;x&#95;"),
    ],
)
def test_values_in_a_card(text, shown) -> None:
    assert plain(text) == shown
    assert "/home" not in code_block(text) and "Users" not in code_block(text)


def test_an_adapter_from_the_hub_loads_here_as_well(run, run_folder, tmp_path) -> None:
    loaded = load_adapter(load_model("nano", device="cpu"), publish(run_folder, "me/x", out=tmp_path / "out"))
    assert all(torch.equal(v, run.model.adapter_tensors()[k]) for k, v in loaded.adapter_tensors().items())
