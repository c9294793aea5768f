"""Make `data/nano`: a Llama of 4 million parameters that copies well and writes JSON, from scratch on a CPU.

    python research/train_nano.py --minutes 50        # then: python research/train_adapters.py nano
    python research/train_nano.py --start data/nano --tasks --minutes 45 --lr 1e-3 --out work/nano  # all five tasks

Copying is what a model of this size learns last, so it comes first: the weights start with an induction circuit, then
there are random tokens to repeat, then short documents, then longer ones. The documents are made by the task's own
generator from *made-up* words and layouts (syllables drawn at random), so nothing of any split is learned here and
unknown words are copied piece by piece.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from generators.receipts_tasks import LABELS, POOLS, Pool, draw_date, draw_label, draw_line, make_example
from generators.rewording import reworded
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_workbench.common.environment import data_folder, describe
from dpo_workbench.training.packing import Row, pack

END, ANSWER = "<|end|>", "<|answer|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|answer|>{{ m.content }}{{ eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)
VOCABULARY = 3072
BATCH_TOKENS = 4096  # padded, in one step
TASK_SHARES = (0.3, 0.25, 0.1, 0.35)  # of the batches that are not receipts: python, science, briefs, sql


def made_up_word(rng: random.Random, pieces: Sequence[str] = ()) -> str:
    """A word of random syllables, or of random pieces of the vocabulary."""
    if pieces and rng.random() < 0.5:
        return "".join(rng.choice(pieces) for _ in range(rng.choice((1, 1, 2, 3))))
    parts = [
        rng.choice("b c d f g h j k l m n p r s t v w z st pl gr ch th br".split())
        + rng.choice("a e i o u ai ea oo ar en il un".split())
        for _ in range(rng.choice((1, 2, 2, 3, 3)))
    ]
    return "".join(parts) + rng.choice(("", "", "n", "s", "r", "ck", "ll"))


def made_up_pool(rng: random.Random, pieces: Sequence[str] = ()) -> Pool:
    """A pool like a split's, of random syllables, random pieces of the vocabulary, and random layouts."""

    def word() -> str:
        return made_up_word(rng, pieces)

    def words(n: int, title: bool = False) -> tuple[str, ...]:
        made = (" ".join(word() for _ in range(rng.choice((1, 1, 2)))) for _ in range(n))
        return tuple(w.title() if title else w for w in made)

    labels = tuple(draw_label(rng, lambda: rng.choice((word(), rng.choice(LABELS["train"])))) for _ in range(6))
    dates = tuple(draw_date(rng) for _ in range(6))
    return Pool(
        words(20, True),
        words(10, True),
        words(20),
        words(30),
        tuple(draw_line(rng, word) for _ in range(8)),
        labels,
        dates,
        (*words(3, True), ""),
        words(4, True),
    )


def documents(
    rng: random.Random, n: int, max_items: int, real: float = 0.0, pieces: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """`n` (prompt, answer) texts, the share `real` of them with the words and layouts of the training split."""
    pools = [made_up_pool(rng, pieces) for _ in range(max(1, n // 12))]
    pools += [POOLS["train"]] * round(len(pools) * real / (1 - real))
    made = (make_example(rng.choice(pools), rng, "x", "x", max_items) for _ in range(n))
    return [(e.prompt, e.reference) for e in made]


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE; numbers are cut into groups of at most three digits, each a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d{1,3}|\n| ?[^\s\d]+| +"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [str(k) for k in range(1000)] + [f"{k:02d}" for k in range(100)]
    texts = [text for row in documents(rng, 4000, 12) for text in row]
    lists = " ".join(w for w in (*POOLS["train"].nouns, *POOLS["train"].adjectives) for _ in range(20))
    corpus = texts + [lists] + numbers * 60
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    return fast


def copy_rows(rng: random.Random, vocabulary: int, answer: int, end: int, longest: int) -> list[Row]:
    """Random tokens, then the same tokens: the first thing to learn. Some repeat a few tokens many times."""
    rows, total = [], 0
    while total < BATCH_TOKENS:
        n = rng.randrange(4, longest + 1)
        few = (
            [rng.randrange(2, vocabulary) for _ in range(rng.choice((6, 12, 40, vocabulary)))]
            if rng.random() < 0.4
            else None
        )
        tokens = tuple(rng.choice(few) if few else rng.randrange(2, vocabulary) for _ in range(n))
        rows.append(Row("copy", (*tokens, answer), ((*tokens, end),)))
        total += 2 * longest
    return rows


def document_rows(rng: random.Random, tokenizer: PreTrainedTokenizerFast, max_items: int, real: float) -> list[Row]:
    """A batch of receipts of similar length."""
    return batch_rows(rng, tokenizer, documents(rng, 48, max_items, real, word_pieces(tokenizer)))


def word_pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The tokens that are letters."""
    return [w.strip() for w in map(tokenizer.decode, range(2, len(tokenizer))) if w.strip().isalpha() and w.isascii()]


def batch_rows(rng: random.Random, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> list[Row]:
    """As many of the texts as make a batch, of similar length."""
    answer, end = tokenizer.convert_tokens_to_ids([ANSWER, END])
    ids = tokenizer([text for pair in pairs for text in pair], add_special_tokens=False)["input_ids"]
    rows = [Row("doc", (*ids[2 * k], answer), ((*ids[2 * k + 1], end),)) for k in range(len(pairs))]
    rows.sort(key=lambda r: r.n_tokens)
    width = BATCH_TOKENS // rows[len(rows) // 2].n_tokens
    start = rng.randrange(max(1, len(rows) - width + 1))
    return rows[start : start + width]


def task_pools(rng: random.Random, n: int = 4000) -> dict[str, list[tuple[str, str]]]:
    """Fresh (prompt, answer) texts of the other four tasks, from the generators' words for the training split.

    They are said in other words each time they are drawn (see `reworded`)."""
    pools: dict[str, list[tuple[str, str]]] = {}
    for name in ("python", "science", "briefs", "sql"):
        generator = importlib.import_module(f"generators.{name}_tasks")
        if name == "sql":
            folder = data_folder() / "sql" / "databases"
            opened = {s: sqlite3.connect(folder / f"{s}.sqlite") for s in generator.FIRST}
            made = (generator.make_example("train", 0, rng.choice(generator.KINDS), rng, opened) for _ in range(2 * n))
        else:
            made = (generator.make_example("train", 0, rng) for _ in range(2 * n if name == "python" else n))
        pools[name] = [(e.prompt, e.reference) for e in made if e is not None]
    return pools


# What is learned, in order: kind, size (tokens to copy, or items), share of right tokens at which the next one begins.
# A stage also ends at the given share of the time, so that a slow one cannot use up the rest.
STAGES = (
    ("copy", 12, 0.9, 0.04),
    ("copy", 24, 0.92, 0.06),
    ("copy", 48, 0.92, 0.08),
    ("doc", 1, 0.9, 0.12),
    ("doc", 2, 0.93, 0.2),
    ("doc", 3, 0.95, 0.3),
    ("doc", 6, 2.0, 0.6),
    ("real", 12, 2.0, 1.0),  # every third document with the training split's own words
)


@torch.no_grad()
def wire_copying(model: LlamaForCausalLM, gain: float = 24.0) -> None:
    """Start the weights with an induction circuit, which plain training of this length finds only in part.

    Layer 0, head 0 looks one token back (a constant in every embedding gives its query and key; the rotary angles do
    the rest) and notes that token in a block of the residual of its own. Layer 1, heads 0 to 2, look where the noted
    token equals the present one, and add what stands there, which is the next token to copy. Everything is trained on
    from here. (The circuit: Olsson et al. 2022, arXiv 2209.11895.)
    """
    config = model.config
    dim = config.head_dim
    half, noted, words = dim // 2, 64, 3 * 53
    spread = config.initializer_range
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, spread)
    embedding[:, 0] = 4 * spread  # the constant
    embedding[:, words + 1 :] = 0  # room for the noted token, and to spare
    for layer in model.model.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                weight.mul_(0.03 if "down" in name or "o_proj" in name else 1.0)  # quiet at first
    theta = model.config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)  # radians a token
    first, second = (model.model.layers[i].self_attn for i in (0, 1))

    fast = theta > 0.05  # only quick angles tell one token back from none or two
    query, key = torch.zeros(dim), torch.zeros(dim)
    query[:half][fast], query[half:][fast] = theta[fast].cos(), -theta[fast].sin()
    key[:half][fast] = 1.0
    first.q_proj.weight[:dim], first.k_proj.weight[:dim] = 0, 0
    first.q_proj.weight[:dim, 0], first.k_proj.weight[:dim, 0] = 3 * query, 3 * key
    slow = (theta * 300 < 1).nonzero()[:, 0]
    slow = torch.cat([slow, slow + half])[:noted]  # places of a head whose meaning barely turns within a document
    look = torch.randn(len(slow), words) / len(slow) ** 0.5  # a token in short
    first.v_proj.weight[:dim], first.o_proj.weight[:, :dim] = 0, 0
    first.v_proj.weight[: len(slow), 1 : words + 1] = look
    first.o_proj.weight[words + 1 : words + 1 + len(slow), : len(slow)] = torch.eye(len(slow)) * 0.05
    for head in range(3):
        rows = slice(head * dim, (head + 1) * dim)
        for weight in (second.q_proj.weight, second.k_proj.weight, second.v_proj.weight):
            weight[rows] = 0
        second.q_proj.weight[head * dim + slow, 1 : words + 1] = look * (gain * 8 / words) ** 0.5
        for i, place in enumerate(slow.tolist()):
            second.k_proj.weight[head * dim + place, words + 1 + i] = (gain * 8 / words) ** 0.5
        part = torch.arange(head * 53, (head + 1) * 53)
        second.v_proj.weight[head * dim + torch.arange(53), 1 + part] = 1.0
        second.o_proj.weight[:, rows] = 0
        second.o_proj.weight[1 + part, head * dim + torch.arange(53)] = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-clock training time")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=data_folder() / "nano")
    parser.add_argument("--max-items", type=int, default=12, help="the longest list in the last stage's documents")
    parser.add_argument("--tasks", action="store_true", help="mix in the other four tasks, three batches of five")
    parser.add_argument("--start", type=Path, help="go on from this folder's weights and tokenizer, at the last stage")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start) if args.start else train_tokenizer(rng)
    answer, end = tokenizer.convert_tokens_to_ids([ANSWER, END])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config)
    wire_copying(model)
    if args.start:
        model.load_state_dict(load_file(args.start / "model.safetensors"), strict=False)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    start, step, tokens, right, log = time.monotonic(), 0, 0, 0.0, []
    stage = len(STAGES) - 1 if args.start else 0
    pools, pieces = task_pools(rng) if args.tasks else {}, word_pieces(tokenizer)
    while (share := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        kind, size, enough, until = STAGES[stage]
        if right > enough or share > until:
            stage, right = stage + 1, 0.0
            kind, size, _, _ = STAGES[stage]
        if pools and kind == "real" and rng.random() < 0.6:
            kind = rng.choices(list(pools), TASK_SHARES)[0]
            texts = [
                reworded(kind, *text, rng, lambda: made_up_word(rng, pieces)) for text in rng.sample(pools[kind], 96)
            ]
            rows = batch_rows(rng, tokenizer, texts)
        elif kind == "copy":
            rows = copy_rows(rng, len(tokenizer), answer, end, size)
        else:
            rows = document_rows(rng, tokenizer, min(size, args.max_items), 1 / 3 if kind == "real" else 0.0)
        batch = pack(rows)
        lr = args.lr * min(1.0, (step + 1) / 50) * max(0.02, 1 - max(0.0, share - 0.6) / 0.4)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
            scores = model.lm_head(hidden.flatten(0, 1)[batch.source])
        loss = torch.nn.functional.cross_entropy(scores.float(), batch.target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step, tokens = step + 1, tokens + batch.input_ids.numel()
        right = 0.9 * right + 0.1 * (scores.argmax(1) == batch.target).float().mean().item()
        if step % 50 == 0:
            entry = {
                "step": step,
                "stage": f"{kind} {size}",
                "loss": round(loss.item(), 4),
                "right": round(right, 4),
                "tokens": tokens,
            }
            log.append(entry)
            print(entry, round(time.monotonic() - start), "s", flush=True)
        if step % 300 == 0:
            save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)
    note = {
        "start": str(args.start or "scratch"),
        "minutes": args.minutes,
        "seed": args.seed,
        "max_items": args.max_items,
        "lr": args.lr,
        "steps": step,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "machine": describe(),
        "log": log[:: max(1, len(log) // 40)],
    }
    (args.out / "training.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as bf16 safetensors next to tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
