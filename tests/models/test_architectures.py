"""Tiny models of many architectures: they generate what transformers' own `generate` does, and they train.

They differ in sliding windows, capped scores, attention sinks, output heads with a bias, a scale or a cap, recurrent
layers, compressed keys, and positions.
"""

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

import dpo_workbench as dw
from dpo_workbench.models.generation import generate
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.tokens import tokenize

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip
HEADS, WINDOW = {"head_dim": 8}, {"sliding_window": 16}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 16,
}  # fmt: skip
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16}
MODELS = {  # configuration, and whether its rows can be packed on a CPU
    "mistral": (hf.MistralConfig, WINDOW, False),  # the rows below are longer than its window
    "gemma2": (hf.Gemma2Config, HEADS | WINDOW | {"query_pre_attn_scalar": 8}, False),
    "gpt_oss": (hf.GptOssConfig, HEADS | WINDOW | MOE, False),
    "phi": (hf.PhiConfig, {}, True),
    "phimoe": (hf.PhimoeConfig, MOE, True),
    "cohere": (hf.CohereConfig, {"logit_scale": 0.25}, True),
    "granite": (hf.GraniteConfig, {"logits_scaling": 4.0}, True),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    "nemotron": (hf.NemotronConfig, HEADS, True),
    "deepseek_v3": (hf.DeepseekV3Config, LATENT, True),
    "qwen3_5": (hf.Qwen3_5TextConfig, HEADS | LINEAR, False),
    "mamba2": (hf.Mamba2Config, {"head_dim": 8, "num_heads": 8, "n_groups": 1, "state_size": 8}, False),
    "bloom": (hf.BloomConfig, {"n_layer": 2, "n_head": 4}, False),
    "gpt_neo": (hf.GPTNeoConfig, LOCAL, False),
}
PROMPTS = ["ab cd " * 12, "the answer to the question is yes: 12", "no"]


@pytest.fixture(params=MODELS)
def pair(request, tiny, tmp_path):
    """A model as this package loads it, and as transformers does, with its own attention."""
    kind, own, _ = MODELS[request.param]
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(kind(**SIZES | {"vocab_size": len(tiny.tokenizer)} | own)).float()
    for name, values in network.named_parameters():
        if (values.dim() > 1 or "bias" in name or "sinks" in name) and "dt" not in name:
            torch.nn.init.normal_(values, std=0.3)
    network.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    try:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    except ValueError:  # it has no such attention
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    return request.param, dw.load_model(tmp_path, device="cpu", dtype=torch.float32), theirs


def test_answers_are_those_of_transformers(pair) -> None:
    _, model, theirs = pair
    drawn = []
    for prompt in PROMPTS:
        ids = torch.tensor([model.chat.prompt_ids(prompt)])
        settings = {"do_sample": False, "max_new_tokens": 24, "attention_mask": torch.ones_like(ids)}
        drawn.append(theirs.generate(input_ids=ids, **settings)[0, ids.shape[1] :].tolist())
    want = model.tokenizer.batch_decode(drawn, skip_special_tokens=True)
    assert [a.text for (a,) in generate(model, PROMPTS, max_new_tokens=24)] == want
    several = generate(model, PROMPTS, samples=2, temperature=1e-6, max_new_tokens=24)
    assert [[a.text for a in answers] for answers in several] == [[text] * 2 for text in want]
    begun = [tokens[:k] for k, tokens in enumerate(drawn)]
    assert [(a.text, a.n_tokens) for (a,) in generate(model, PROMPTS, max_new_tokens=24, begun=begun)] == [
        (text, len(tokens)) for text, tokens in zip(want, drawn, strict=True)
    ]


def test_log_probabilities_are_the_models_own(pair, capsys) -> None:
    name, model, theirs = pair
    texts = [(f"q{k}", p, ("yes: 12 and more", "no, the question " * (k + 1))) for k, p in enumerate(PROMPTS)]
    rows = tokenize(model, texts, 1024)
    config = choose_packing(model, rows, TrainConfig(batch_size=2))
    assert config.packing == MODELS[name][2]
    assert ("cannot take packed rows" in capsys.readouterr().out) != config.packing
    found = reference_logps(model, rows, config, None)
    for row in rows:
        for answer, value in zip(row.answer_ids, found[row.id], strict=True):
            ids = torch.tensor([[*row.prompt_ids, *answer]])
            with torch.no_grad():
                logps = theirs(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            places = torch.arange(len(row.prompt_ids) - 1, ids.shape[1] - 1)
            assert value == pytest.approx(float(logps[places, ids[0, places + 1]].sum()), abs=2e-3)


def test_training_moves_them_and_the_adapter_can_be_merged_and_kept(pair, tmp_path) -> None:
    _, model, _ = pair
    pairs = dw.Pairs([dw.Pair(f"q{k}", prompt, "yes: 12", "no " * (k + 1)) for k, prompt in enumerate(PROMPTS)])
    run = dw.train(model, pairs, TrainConfig(epochs=2, batch_size=3, lr=3e-3, probes=0, held_out=0.0), show=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    ids = torch.tensor([model.chat.prompt_ids(PROMPTS[1])])
    kept = run.model.save(tmp_path / "kept")
    again = dw.load_model(model.source, adapter=kept, device="cpu", dtype=torch.float32)
    scores = []
    for handle in (run.model, again):
        for state in (handle.active, handle.merged):
            with state() as network, torch.no_grad():
                scores.append(network(input_ids=ids, use_cache=False).logits)
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-4, atol=1e-4)
