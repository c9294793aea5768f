"""Packed rows have the log-probabilities and LoRA gradients of plain sequences, on models of several architectures.

The reference is transformers' own eager attention under PEFT, one answer at a time, without any code of this package.
"""

import pytest
import torch
import transformers as hf
from peft import PeftModel

import dpo_workbench as dw
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row, lay_out, pack

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
HEADS = {"head_dim": 8}
CONFIGS = {
    "llama": (hf.LlamaConfig, {}),  # grouped heads
    "qwen2": (hf.Qwen2Config, {}),  # biases in q, k and v
    "qwen3": (hf.Qwen3Config, HEADS),  # norms of q and k
    "gemma": (hf.GemmaConfig, HEADS | {"tie_word_embeddings": True}),  # scaled embeddings, norms with 1 + weight
    "phi3": (hf.Phi3Config, {}),  # one projection for q, k and v
    "gpt_neox": (hf.GPTNeoXConfig, {"rotary_pct": 0.5}),  # parallel layers, rotation of a part of the head
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),  # learned positions
}
ROWS = [
    Row("a", (5, 9, 17, 23), ((30, 31, 32, 0), (40, 41, 0))),
    Row("b", tuple(range(50, 75)), ((80, 81, 82, 83, 84, 0), (80, 81, 90, 0))),  # answers with a common start
    Row("c", (7,), ((100, 0), (101, 102, 103, 104, 105, 106, 107, 0))),
    Row("d", (11, 12), ((60, 61, 0), (60, 61, 62, 63))),  # one answer was cut off
]
WEIGHTS = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 1.0, -0.3])


@pytest.fixture(params=CONFIGS)
def both(request, tiny_folder, tmp_path):
    """A random model with a random adapter: as this package loads it, and as transformers and PEFT do."""
    kind, own = CONFIGS[request.param]
    torch.manual_seed(0)
    network = hf.AutoModelForCausalLM.from_config(kind(**SIZES | own)).float()
    for name, values in network.named_parameters():
        if values.dim() > 1 or "bias" in name:
            torch.nn.init.normal_(values, std=0.2)
    network.save_pretrained(tmp_path)
    hf.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    model = dw.load_model(tmp_path, device="cpu", dtype=torch.float32).with_new_adapter(rank=4, alpha=8, seed=1)
    draw = torch.Generator().manual_seed(2)
    model.set_adapter_tensors(
        {key: 0.2 * torch.randn(values.shape, generator=draw) for key, values in model.adapter_tensors().items()}
    )
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64).eval()
    theirs = PeftModel.from_pretrained(plain, model.save(tmp_path / "adapter"), is_trainable=True).double()
    return model, theirs


def plain_logps(network) -> torch.Tensor:
    """Each answer after its own copy of the prompt, as a sequence by itself. Shape (A,)."""
    sums = []
    for row in ROWS:
        for answer in row.answer_ids:
            ids = torch.tensor([row.prompt_ids + answer])
            logps = network(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            places = torch.arange(len(row.prompt_ids) - 1, ids.shape[1] - 1)
            sums.append(logps[places, torch.tensor(answer)].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("layout", ["packed", "one by one"])
def test_values_and_gradients_are_those_of_plain_sequences(both, layout: str) -> None:
    model, theirs = both
    parameters = [p for name, p in theirs.named_parameters() if "lora_" in name]
    want = plain_logps(theirs)
    slopes = torch.autograd.grad((want * WEIGHTS).sum(), parameters)
    batch = pack(ROWS, "cpu") if layout == "packed" else lay_out(ROWS, 0, "cpu")
    with model.active(trainable=True) as network:
        got = answer_logps(network, batch)
        ours = torch.autograd.grad((got * WEIGHTS).sum(), model.adapter_parameters())
    assert got.shape == (8,) and float(want.detach().max()) < -1
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    assert len(ours) == len(slopes) >= 8
    for mine, slope in zip(ours, slopes, strict=True):
        assert mine.shape == slope.shape and (mine - slope).norm() <= 1e-5 * slope.norm() and slope.norm() > 0


def test_another_token_in_the_prompt_is_seen(both) -> None:
    """Negative control: what is compared above depends on the prompt, and on no other row."""
    model, _ = both
    other = [Row("a", (5, 9, 18, 23), ROWS[0].answer_ids), *ROWS[1:]]
    with model.active() as network, torch.no_grad():
        one, changed = (answer_logps(network, pack(rows, "cpu")) for rows in (ROWS, other))
    assert (one[:2] - changed[:2]).abs().min() > 1e-3
    torch.testing.assert_close(changed[2:], one[2:], rtol=1e-6, atol=1e-6)
