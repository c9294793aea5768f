"""A model's files without its weights: chat and config, and how many positions the model has."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
import transformers

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import files
from dpo_workbench.models.files import load_chat, max_positions
from dpo_workbench.models.loading import load_model

NARROW = {"vocab_size": 50, "num_hidden_layers": 1, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def bare(tiny_folder, tmp_path):
    """The tiny model's folder without weights."""
    return shutil.copytree(tiny_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))


def test_the_chat_of_a_folder_without_weights_is_that_of_the_model(bare, tiny) -> None:
    for name in (bare, "nano"):
        chat, config = load_chat(name)
        model = tiny if name == bare else load_model("nano", device="cpu")
        assert chat.prompt_ids("q") == model.chat.prompt_ids("q") and chat.stop_ids == model.chat.stop_ids
        assert max_positions(config) == model.max_positions
    with pytest.raises(WorkbenchError, match="could not be loaded.*model.safetensors"):
        load_model(bare)


@pytest.mark.parametrize("listed", [True, False])
def test_tokens_that_end_an_answer_are_read_with_and_without_generation_settings(bare, listed: bool) -> None:
    settings = bare / "generation_config.json"
    settings.unlink(missing_ok=True)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 7]}))
    if listed:
        settings.write_text(json.dumps({"eos_token_id": [0, 9]}))
    assert load_chat(bare)[0].stop_ids == [0, 9 if listed else 7]


def test_arguments_of_the_template_are_passed_on(bare) -> None:
    with pytest.raises(WorkbenchError, match="arguments that the chat template uses. Got 'x'"):
        load_chat(bare, {"x": 1})


def test_smol_needs_no_weights(monkeypatch, bare) -> None:
    asked = []
    monkeypatch.setattr(files, "smol_folder", lambda weights: asked.append(weights) or bare)
    assert load_chat("smol")[0].tokenizer.chat_template == files.CHATML and asked == [False]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_positions": 16}),
        ("opt", {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "max_position_embeddings": 16}),
        ("mpt", {"d_model": 32, "max_seq_len": 16}),
    ],
)
def test_positions_are_as_many_as_the_model_can_take(kind: str, settings: dict) -> None:
    """One token more is an IndexError or another error from inside the model."""
    config = transformers.AutoConfig.for_model(kind, **NARROW, **settings)
    network = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.ones(1, max_positions(config), dtype=torch.long)
    assert network(ids).logits.shape[1] == 16
    with pytest.raises((IndexError, RuntimeError)):
        network(torch.cat([ids, ids[:, :1]], dim=1))


def test_positions_of_other_models() -> None:
    rotary = {"max_position_embeddings": 64, "sliding_window": 8}  # a window limits what is seen, not the length
    assert max_positions(transformers.AutoConfig.for_model("mistral", **rotary)) == 64
    vision = transformers.AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 99})
    assert max_positions(vision) == 99
    assert max_positions(transformers.AutoConfig.for_model("bloom")) == sys.maxsize
