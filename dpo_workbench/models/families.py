"""What differs between the model families of transformers: which can be trained here, and where their decoder is."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from dpo_workbench.common.errors import WorkbenchError

ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl"),
    *("xlnet", "xmod"),
)
REFUSED = {  # model_type in config.json: why
    **dict.fromkeys(ENCODERS, "its tokens attend to later ones, as in an encoder"),
    **dict.fromkeys(
        ("git", "rwkv", "xlstm", "recurrent_gemma"), "it ignores the attention mask, so prompts can't be padded"
    ),
    **dict.fromkeys(("emu3", "mllama"), "transformers can't build its text model from the config of that part"),
    **dict.fromkeys(("cpmant", "reformer", "trocr"), "it needs other inputs than the ids of a text"),
    **dict.fromkeys(("inkling_text", "modernbert-decoder"), "its output head is more than one matrix"),
    "laguna": "PEFT can't read back what it saves of an adapter",
}


def check_family(config: PreTrainedConfig, name: str) -> None:
    """Raise a WorkbenchError if the model `name` with this config can't be trained here."""
    why = REFUSED.get(config.model_type)
    if config.is_encoder_decoder:
        why = "it has an encoder next to its decoder"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "transformers has no language model of text for it, as for many models that read images"
    if why:
        raise WorkbenchError(
            f"A model's architecture must be one that can be trained here. {name!r} is {config.model_type}: {why}. "
            "Choose another model."
        )


def decoder(causal: Any) -> Any:
    """The part of a causal LM that makes the last hidden states of a text: no output head, no image tower."""
    found = causal.get_decoder()
    if isinstance(found, PreTrainedModel) and found is not causal:
        return found
    # Llama 4 and others name this part in a way that transformers' own search misses.
    return next(part for part in causal.children() if isinstance(part, PreTrainedModel))
