"""Well-known public preference sets: rows in the shape that each one documents are read without any setting."""

import pytest

from dpo_workbench.pairs.pair import read_pairs


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


ASKED, GOOD, BAD = "Name an ore of iron.", "Haematite.", "Malachite."
ROWS = {  # made up here, in the columns of each set's card
    "Anthropic/hh-rlhf": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
    },
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": ASKED, "prompt_id": "a1", "chosen": turns(ASKED, GOOD), "rejected": turns(ASKED, BAD),
        "messages": turns(ASKED, GOOD), "score_chosen": 8.5, "score_rejected": 4.0,
    },
    "openbmb/UltraFeedback": {
        "source": "made_up", "instruction": ASKED, "models": ["m1", "m2"],
        "correct_answers": [], "incorrect_answers": [],
        "completions": [
            {"model": "m1", "response": BAD, "annotations": {}, "fine-grained_score": 2.0, "overall_score": 3.0},
            {"model": "m2", "response": GOOD, "annotations": {}, "fine-grained_score": 4.5, "overall_score": 8.0},
        ],
    },
    "HuggingFaceH4/orca_dpo_pairs": {
        "prompt": ASKED,
        "chosen": turns(ASKED, GOOD, system="Be brief."), "rejected": turns(ASKED, BAD, system="Be brief."),
    },
    "Intel/orca_dpo_pairs": {"system": "Be brief.", "question": ASKED, "chosen": GOOD, "rejected": BAD},
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": {
        "prompt_id": "a1", "prompt": ASKED, "chosen": turns(ASKED, GOOD), "rejected": turns(ASKED, BAD),
        "all_generated_responses": [GOOD, BAD], "all_rm_scores": [0.3, -0.2],
    },
    "PKU-Alignment/PKU-SafeRLHF": {
        "prompt": ASKED, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0,
        "is_response_0_safe": True, "is_response_1_safe": True,
    },
    "berkeley-nest/Nectar": {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ", "num_responses": 2, "turns": 1, "source": ["made_up"],
        "answers": [{"answer": GOOD, "model": "m1", "rank": 1.0}, {"answer": BAD, "model": "m2", "rank": 2.0}],
        "good_natured": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_columns_of_a_public_set_are_recognised(name: str) -> None:
    read = read_pairs([ROWS[name]])
    (pair,) = read.pairs
    has_system = "Be brief." in str(ROWS[name])
    asked = (("system", "Be brief."), ("user", ASKED)) if has_system else ASKED
    assert (pair.prompt if has_system else pair.prompt.strip(), pair.chosen, pair.rejected) == (asked, GOOD, BAD)
    assert read.refused == 0
