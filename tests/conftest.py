"""A random Llama of a few thousand weights, a toy task and made-up evaluations: most tests need no other model."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dpo_workbench.evaluation.run import Evaluation, Judged

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts us in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|answer|>{{ m.content }}{{ eos_token }}"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def make_tiny_folder(folder: Path, template: str | None = TEMPLATE, seed: int = 0, eos: str = END) -> Path:
    """Write a random Llama (hidden 32, 2 layers) with a byte-level BPE tokenizer. It often draws END."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(dict.fromkeys([END, "<|user|>", "<|answer|>", eos]))
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(["the answer to the question is yes: ab ab ab, no: cd cd cd 12 34 56"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, pad_token=eos)
    if template:
        tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():  # an end token that is likely enough for answers of different lengths
        network.lm_head.weight[tokenizer.convert_tokens_to_ids(END)] *= 2.5
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(tiny_folder):
    """A fresh handle on the tiny model, in fp32 on the CPU."""
    import torch

    import dpo_workbench as dw

    return dw.load_model(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def moved(tiny):
    """A handle on the tiny model with an adapter that changes its outputs."""
    import torch

    handle = tiny.with_new_adapter(rank=4, alpha=8, seed=1)
    generator = torch.Generator().manual_seed(2)
    handle.set_adapter_tensors(
        {k: 0.2 * torch.randn(v.shape, generator=generator) for k, v in handle.adapter_tensors().items()}
    )
    return handle


@pytest.fixture
def toy_task():
    """Twelve train, four dev and four test prompts; an answer scores by whether it holds the reference."""
    import dpo_workbench as dw

    def score(example: dw.Example, answer: str) -> dw.Score:
        return dw.Score(1.0) if example.reference in answer else dw.Score(0.0, "wrong")

    def rows(split: str, n: int) -> list[dw.Example]:
        return [dw.Example(f"{split}-{k}", f"question {split} {k}", f"yes: {k}", f"{split}-g{k}") for k in range(n)]

    splits = {"train": rows("train", 12), "dev": rows("dev", 4), "test": rows("test", 4)}
    return dw.Task("toy", splits, score, max_new_tokens=12)


@pytest.fixture
def toy_pairs(toy_task):
    """One pair for each train prompt of the toy task."""
    import dpo_workbench as dw

    rows = [
        dw.Pair(
            f"p{k}",
            e.prompt,
            f"yes: {k}",
            f"no: {'cd ' * (k % 3 + 1)}{k}",
            "reference",
            "own",
            1.0,
            0.0,
            "wrong",
            e.group,
        )
        for k, e in enumerate(toy_task.train)
    ]
    return dw.Pairs(rows, toy_task)


@pytest.fixture(name="make_tiny_folder", scope="session")
def _make_tiny_folder():
    """The function above, for tests that need another tiny model."""
    return make_tiny_folder


def make_judged(
    i: int, failure: str | None, value: float | None = None, text: str = "answer", group: str = ""
) -> Judged:
    """One judged answer of a made-up evaluation."""
    from dpo_workbench.evaluation.run import Judged

    score = (0.4 if failure else 1.0) if value is None else value
    finished = failure != "loop"
    return Judged(f"t-{i:04d}", group or f"g{i}", f"prompt {i}", text, 30 + i % 5, finished, score, failure, "why")


def make_arm(name: str, failures: list[str | None], values: list[float] | None = None, **facts: str) -> Evaluation:
    """An evaluation with these failures, prompt by prompt; `values` replace the scores."""
    from dpo_workbench.evaluation.run import Evaluation

    rows = tuple(make_judged(i, f, values[i] if values else None) for i, f in enumerate(failures))
    where = {"task": "receipts", "split": "test", "model": "nano"} | facts
    return Evaluation(name, decoding={"temperature": 0.0}, rows=rows, **where)


@pytest.fixture(name="judged")
def _judged():
    """`make_judged`, a function."""
    return make_judged


@pytest.fixture(name="arm")
def _arm():
    """`make_arm`, a function."""
    return make_arm


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the program in an empty folder; gives exit code, stdout and stderr."""
    from dpo_workbench import cli

    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpo-workbench", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return go


@pytest.fixture(scope="session")
def strong() -> None:
    """For tests of what only the kernel's guards refuse."""
    from dpo_workbench.sandbox.process import guards

    level, line = guards()
    if level != "strong":
        pytest.skip(line)
