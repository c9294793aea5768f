"""Well-known public preference sets: which split and columns hold the pairs, and under what licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """How `read_pairs("hub:NAME")` reads a set, and what must be known before its use."""

    layout: str
    split: str
    licence: str  # as its card names it
    note: str  # who wrote and who judged the answers
    mapping: Mapping[str, str] = field(default_factory=dict)


_LLM = "Answers of several models, among them OpenAI's, judged by GPT-4: look at OpenAI's terms before you train on it"
PRESETS = {
    "Anthropic/hh-rlhf": Preset(
        "hh", "train", "MIT", "dialogues with a model, judged by people; some are offensive, as red teams wrote them"
    ),
    "HuggingFaceH4/ultrafeedback_binarized": Preset("trl", "train_prefs", "MIT", _LLM),
    "openbmb/UltraFeedback": Preset("list", "train", "MIT", _LLM),
    "HuggingFaceH4/orca_dpo_pairs": Preset(
        "trl", "train_prefs", "MIT", "GPT-4 or GPT-3.5 is chosen over Llama 2: look at both licences"
    ),
    "Intel/orca_dpo_pairs": Preset(
        "trl",
        "train",
        "Apache-2.0",
        "GPT-4 or GPT-3.5 is chosen over Llama 2: look at both licences",
        {"prompt": "question"},
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": Preset(
        "trl", "train_iteration_1", "Apache-2.0", "answers of Mistral 7B, judged by the reward model PairRM"
    ),
    "nvidia/HelpSteer3": Preset(
        "compared", "preference/train", "CC-BY-4.0", "answers of several models, each pair judged by up to three people"
    ),
    "PKU-Alignment/PKU-SafeRLHF": Preset(
        "compared",
        "train",
        "CC-BY-NC-4.0",
        "no commercial use; harmful answers are in it, the more helpful one is chosen",
    ),
    "berkeley-nest/Nectar": Preset("list", "train", "Apache-2.0", f"seven a prompt. {_LLM}"),
    "stanfordnlp/SHP": Preset(
        "compared", "train", "none on the card", "comments on Reddit, chosen by their votes: Reddit's terms hold"
    ),
}


def preset_of(source: object) -> tuple[object, Preset | None]:
    """A source with the preset's split where it names none, and the preset; the source as it is without one."""
    if not (isinstance(source, str) and source.startswith("hub:")):
        return source, None
    name, _, split = source[4:].partition("@")
    preset = next((p for known, p in PRESETS.items() if known.lower() == name.lower()), None)
    return (f"hub:{name}@{split or preset.split}" if preset else source), preset
