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
    "nvidia/HelpSteer3": {
        "domain": "general", "language": "english", "context": turns(ASKED), "response1": BAD, "response2": GOOD,
        "overall_preference": 1,
        "individual_preference": [{"score": s, "reasoning": "", "feedback1": "", "feedback2": ""} for s in (2, 1, -1)],
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
    "stanfordnlp/SHP": {
        "post_id": "a1", "history": ASKED, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0,
        "score_A": 3, "score_B": 30, "score_ratio": 10.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_columns_of_a_public_set_are_recognised(name: str) -> None:
    read = read_pairs([ROWS[name]])
    (pair,) = read.pairs
    assert ("Be brief." in pair.prompt) == ("Be brief." in str(ROWS[name])) and read.refused == 0
    assert (pair.chosen, pair.rejected) == (GOOD, BAD) and ASKED in pair.prompt and "Assistant" not in pair.prompt


def test_disagreement_of_three_people_is_the_weight() -> None:
    row = ROWS["nvidia/HelpSteer3"]
    (pair,) = read_pairs([row]).pairs
    assert pair.weight == pytest.approx(1 / 3)  # two of three
    tie = row | {"overall_preference": 0}
    against = row | {"overall_preference": -1}
    read = read_pairs([tie, against])
    assert read.counts["P412"] == read.skipped == 2 and not read.found


def test_a_person_without_a_score_is_refused_not_raised() -> None:
    row = ROWS["nvidia/HelpSteer3"] | {"individual_preference": [{"reasoning": "no score"}]}
    problem = read_pairs([row]).findings[0]
    assert (problem.code, problem.field) == ("P108", "individual_preference")
