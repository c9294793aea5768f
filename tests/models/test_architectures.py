"""Every family of causal LMs in transformers, as a tiny random model: it trains, samples and saves as it should.

The families differ in sliding windows, capped scores, attention sinks, output heads with a bias, a scale or a cap,
recurrent layers, compressed keys, experts and positions. `make test` runs six of them, `make test-all` all.
"""

from __future__ import annotations

import dataclasses
import re
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.files import REFUSED, check_family
from dpo_workbench.models.generation import generate
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.tokens import tokenize

VERSION = "5.23.0"  # of transformers, whose families the lists below name
FAST = ("llama", "qwen3", "gemma3_text", "phi3", "mistral", "gpt2")

SIZES = {  # set in every configuration that has a field of this name
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32), **dict.fromkeys(("intermediate_size", "ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4), "num_key_value_heads": 2,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "sliding_window"), 512),
    **dict.fromkeys(("head_dim", "v_head_dim", "index_head_dim"), 8), "index_n_heads": 2, "index_topk": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4), "num_experts_per_tok": 2,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16), "n_shared_experts": 1,
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 8,
    "image_size": 16,
}  # fmt: skip
MIXED = {"layer_types": ["linear_attention", "full_attention"]}  # with recurrent layers
INDEXED = {
    "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2, "indexer_kv_heads": 1,
    "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 4,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4}  # attention with compressed keys has as many of them as queries
PER_LAYER = {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8, "global_head_dim": 8}
PARTS = ("text_config", "vision_config", "audio_config", "attn_config", "ffn_config")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MORE = {  # fields that a family needs, or that make it different from another one
    **dict.fromkeys(("gemma2", "gemma3_text", "gpt_oss", "mistral"), {"sliding_window": 16}),
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"), LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("codegen", "gptj"), {"rotary_dim": 4}),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), {"layer_types": ["conv", "full_attention"]}),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), {"text_config": MIXED}),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), MIXED),
    "bailing_hybrid": LATENT | {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere": {"logit_scale": 0.25},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {"text_config": LATENT | {"layer_types": ["full_attention"] * 2}},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "fuyu": {"text_config": {"model_type": "persimmon", **VISION}},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
    "gemma3n_text": PER_LAYER | {"num_kv_shared_layers": 0},
    "gemma4": {"text_config": PER_LAYER},
    "gemma4_text": PER_LAYER,
    "got_ocr2": {"text_config": {"model_type": "qwen2", **VISION, "num_key_value_heads": 2}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": MIXED | {"shared_intermediate_size": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": MIXED | LATENT | {"linear_head_dim": 8, "linear_num_heads": 4},
    "longcat_flash": LATENT | {"head_dim": 4, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8},
    "qwen4_exp": {"text_config": INDEXED},
    "qwen4_exp_text": INDEXED,
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
# Saved with the weights of their image towers, which `load_model` leaves out or does not train.
WITH_IMAGES = ("gemma3", "gemma4", "gemma4_unified", "llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp")
# Families whose rows can be packed on a CPU, and those that get a sequence for each answer.
PACKED = """
    afmoe apertus arcee aria_text axk1 axk2 beam biogpt bitnet cohere cohere2 cohere2_moe cohere_compass_text
    ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon flex_olmo fuyu gemma gemma3 gemma3n_text gemma4 gemma4_text
    gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2
    gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 llama llama4 llama4_text longcat_flash mellum
    minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mixtral moshi nanochat nemotron olmo
    olmo2 olmo3 olmoe opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
    smollm3 solar_open stablelm starcoder2 youtu
""".split()
PLAIN = """
    bailing_hybrid bamba bloom codegen deepseek_v4 falcon_h1 falcon_mamba flint gemma2 gemma3_text gpt_neo
    gpt_neox_japanese gpt_oss gptj granite_swa granitemoe_swa granitemoehybrid hy_v4 inkling2_text jamba
    kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 mimo_v2_flash minimax mistral mpt nemotron_h olmo_hybrid
    openai-gpt qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text vaultgemma
    xglm zamba zamba2 zaya
""".split()
ENCODER_DECODERS = """
    bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart prophetnet
    whisper
""".split()
LEFT_OUT = {
    "blt": "its input is bytes in patches, with a table of 96 million numbers at any size",
    "dots3_note": "its image tower has no small configuration (its text model is covered as dots3_note_text)",
    "gemma3n": "its image tower needs the library timm (its text model is covered as gemma3n_text)",
    "gemma4_assistant": "it reads the cache of another model",
    "gemma4_unified_assistant": "it reads the cache of another model",
    "moss_transcribe_diarize": "it transcribes audio",
}
PROMPTS = ["ab cd " * 12, "the answer to the question is yes: 12", "no"]


def tiny_fields(kind: type[hf.PreTrainedConfig], vocab_size: int) -> dict[str, Any]:
    """Small values for the fields of a configuration class that are in `SIZES`, and of those inside it (`PARTS`)."""
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    sizes = {key: value for key, value in SIZES.items() if key in known}
    parts = {name: part for name, part in kind.sub_configs.items() if name in PARTS and part is not AutoConfig}
    inside = {name: tiny_fields(part, vocab_size) for name, part in parts.items()}
    return sizes | inside | ({"vocab_size": vocab_size} if "vocab_size" in known else {})


def tiny_config(family: str, vocab_size: int) -> hf.PreTrainedConfig:
    fields = tiny_fields(CONFIG_MAPPING[family], vocab_size)
    for key, value in MORE.get(family, {}).items():
        fields[key] = fields[key] | value if isinstance(value, dict) and key in fields else value
    return CONFIG_MAPPING[family](**fields)


def write_model(family: str, tiny, folder: Path) -> hf.PreTrainedModel:
    """Save a tiny random model of this family, and load it as transformers does, with its own attention."""
    torch.manual_seed(0)
    kind = hf.AutoModelForImageTextToText if family in WITH_IMAGES else AutoModelForCausalLM
    network = kind.from_config(tiny_config(family, len(tiny.tokenizer))).float()
    for name, values in network.named_parameters():
        if (values.dim() > 1 or "bias" in name or "sinks" in name) and "dt" not in name:
            torch.nn.init.normal_(values, std=0.3)
    network.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    except ValueError:  # it has no such attention
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check_answers(model: dw.Model, theirs: hf.PreTrainedModel) -> None:
    """Greedy answers, samples at a temperature near 0 and answers that are begun are those of transformers."""
    drawn = []
    for prompt in PROMPTS:
        ids = torch.tensor([model.chat.prompt_ids(prompt)])
        settings = {"do_sample": False, "max_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
        drawn.append(theirs.generate(input_ids=ids, **settings)[0, ids.shape[1] :].tolist())
    want = [model.chat.answer_text(model.chat.prompt_ids(p), ids) for p, ids in zip(PROMPTS, drawn, strict=True)]
    assert [a.text for (a,) in generate(model, PROMPTS, max_new_tokens=8)] == want
    several = generate(model, PROMPTS, samples=2, temperature=1e-6, max_new_tokens=8)
    assert [[a.text for a in answers] for answers in several] == [[text] * 2 for text in want]
    begun = [tokens[:k] for k, tokens in enumerate(drawn)]
    assert [(a.text, a.n_tokens) for (a,) in generate(model, PROMPTS, max_new_tokens=8, begun=begun)] == [
        (text, len(tokens)) for text, tokens in zip(want, drawn, strict=True)
    ]


def check_log_probabilities(model: dw.Model, theirs: hf.PreTrainedModel) -> bool:
    """Each answer's log-probability is that of its own sequence; returns whether rows were packed."""
    texts = [(f"q{k}", p, ("yes: 12 and more", "no, the question " * (k + 1))) for k, p in enumerate(PROMPTS)]
    rows = tokenize(model, texts, 1024)
    config = choose_packing(model, rows, TrainConfig(batch_size=2))
    found = reference_logps(model, rows, config, None)
    for row in rows:
        for answer, value in zip(row.answer_ids, found[row.id], strict=True):
            ids = torch.tensor([[*row.prompt_ids, *answer]])
            with torch.no_grad():
                logps = theirs(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            places = torch.arange(len(row.prompt_ids) - 1, ids.shape[1] - 1)
            assert value == pytest.approx(float(logps[places, ids[0, places + 1]].sum()), abs=2e-3)
    return config.packing


def check_training(model: dw.Model, theirs: hf.PreTrainedModel, folder: Path) -> None:
    """Training starts at log 2, lowers the loss and changes the adapter alone, which this package and PEFT can load."""
    ids = torch.tensor([model.chat.prompt_ids(PROMPTS[1])])

    def logits(network) -> torch.Tensor:
        with torch.no_grad():
            return network(input_ids=ids, use_cache=False).logits

    before = logits(model.network)
    pairs = dw.Pairs([dw.Pair(f"q{k}", prompt, "yes: 12", "no " * (k + 1)) for k, prompt in enumerate(PROMPTS)])
    config = TrainConfig(epochs=2, batch_size=3, lr=3e-3, nll_weight=0.0, probes=0, held_out=0.0)
    run = dw.train(model, pairs, config, show=False)
    first, last = run.history[0], run.history[-1]
    assert first["loss"] == pytest.approx(log(2), abs=1e-4) and first["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert last["loss"] < first["loss"] and 0 < last["grad_norm"] < float("inf")
    with model.active() as network:
        assert torch.equal(logits(network), before)  # training changed no weight of the base
    saved = run.model.save(folder)
    assert not [name for name in run.model.adapter_tensors() if re.search("vision|visual|audio|projector", name)]
    again = dw.load_model(model.source, adapter=saved, device="cpu", dtype=torch.float32)
    found = []
    for handle in (run.model, again):
        for state in (handle.active, handle.merged):
            with state() as network:
                found.append(logits(network))
    found.append(logits(PeftModel.from_pretrained(theirs, saved).eval()))
    assert not torch.allclose(found[0], before, rtol=1e-4, atol=1e-4)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def check_family_works(family: str, tiny, folder: Path) -> bool:
    """Everything above for one family; returns whether rows were packed."""
    theirs = write_model(family, tiny, folder / "model")
    model = dw.load_model(folder / "model", device="cpu", dtype=torch.float32)
    check_answers(model, theirs)
    packed = check_log_probabilities(model, theirs)
    check_training(model, theirs, folder / "adapter")
    return packed


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in (*PACKED, *PLAIN)]
)
def test_family(family: str, tiny, tmp_path) -> None:
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"transformers {hf.__version__} does not have it")
    assert check_family_works(family, tiny, tmp_path) == (family in PACKED)


@pytest.mark.parametrize("family", [*REFUSED, *ENCODER_DECODERS])
def test_refused_family(family: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {hf.__version__} does not have it")
    with pytest.raises(WorkbenchError, match=f"is {family}: .*Choose another model"):
        check_family(CONFIG_MAPPING[family](), "somebody/model")
    check_family(hf.LlamaConfig(), "somebody/model")  # negative control


def test_every_family_of_transformers_is_covered_refused_or_left_out() -> None:
    listed = [*PACKED, *PLAIN, *REFUSED, *ENCODER_DECODERS, *LEFT_OUT]
    assert len(listed) == len(set(listed)) and set(MORE) <= set(listed) and set(WITH_IMAGES) <= {*PACKED, *PLAIN}
    if hf.__version__ != VERSION:
        pytest.skip(f"the lists are those of transformers {VERSION}")
    assert set(listed) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.slow
def test_families_that_a_newer_transformers_adds_are_reported(tiny, tmp_path) -> None:
    """They don't fail the tests of whoever has that version: the message says which ones work."""
    listed = {*PACKED, *PLAIN, *REFUSED, *ENCODER_DECODERS, *LEFT_OUT}
    new = {}
    for family in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - listed:
        try:
            new[family] = "packed" if check_family_works(family, tiny, tmp_path / family) else "plain"
        except Exception as error:
            new[family] = f"{type(error).__name__}: {error}"[:100]
    if new:
        pytest.xfail(f"transformers {hf.__version__} has new families: {new}")


def test_a_family_that_needs_a_model_with_images_is_refused() -> None:
    for config in (hf.Qwen2_5_VLConfig(), hf.Mistral3Config(), hf.T5GemmaConfig()):
        with pytest.raises(WorkbenchError, match="transformers has no language model|encoder next to its decoder"):
            check_family(config, "somebody/model")
