"""What a pack looks like. That its values are those of plain sequences is tested in tests/oracles/test_packing.py."""

import pytest
import torch

from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row, lay_out, pack
from dpo_workbench.training.tokens import Unfinished, tokenize

TEXTS = [
    ("a", "the question", ("yes: 12", "no: cd cd cd 34")),
    ("b", "a much longer question to the answer ab ab", ("yes", "the answer to the question is no")),
    ("c", "ab", ("no: ab ab ab ab ab ab", "yes: 5")),
    ("d", "the question", ("yes: ab ab cd 12", "yes: ab ab ab 34 56")),  # one beginning
    ("e", "ab cd", ("no: cd cd", Unfinished("no: cd cd cd cd"))),  # one goes on where the other ends
    ("f", "ab cd", ("no: cd cd cd", Unfinished("no: cd cd"))),  # nothing is left of the other
]


@pytest.fixture
def rows(moved) -> list[Row]:
    return tokenize(moved, TEXTS, 200)


def test_answers_do_not_see_each_other(moved, rows) -> None:
    row = rows[0]
    other = Row("x", row.prompt_ids, (row.answer_ids[0], rows[1].answer_ids[1]))
    shorter = Row("y", row.prompt_ids, (row.answer_ids[0], row.answer_ids[1][:1]))
    swapped = Row("z", row.prompt_ids, row.answer_ids[::-1])
    with moved.active() as network, torch.no_grad():
        base, changed, cut, turned = (answer_logps(network, pack([r])) for r in (row, other, shorter, swapped))
    torch.testing.assert_close(changed[0], base[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(cut[0], base[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(turned.flip(0), base, rtol=1e-6, atol=1e-5)
    assert abs(changed[1] - base[1]) > 0.1  # negative control: the rejected answer's own value did change


def test_prompt_is_seen(moved, rows) -> None:
    other = Row("x", rows[1].prompt_ids, rows[0].answer_ids)
    with moved.active() as network, torch.no_grad():
        assert (answer_logps(network, pack([other])) - answer_logps(network, pack([rows[0]]))).abs().min() > 0.01


def test_rows_of_a_pack_do_not_see_each_other(moved, rows) -> None:
    with moved.active() as network, torch.no_grad():
        alone = torch.cat([answer_logps(network, pack([row])) for row in rows])
        together, turned = answer_logps(network, pack(rows)), answer_logps(network, pack(rows[::-1]))
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(turned.view(-1, 2).flip(0).flatten(), alone, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("pad", [0, 5, 100])
def test_laid_out_one_by_one_the_values_are_the_same(moved, rows, pad: int) -> None:
    with moved.active() as network, torch.no_grad():
        packed, plain = answer_logps(network, pack(rows)), answer_logps(network, lay_out(rows, pad))
    torch.testing.assert_close(plain, packed, rtol=1e-6, atol=1e-5)


def test_mask_decodes_to_exactly_the_answers_and_their_end_tokens(moved, rows) -> None:
    batch = pack(rows)
    texts = [text for _, _, answers in TEXTS for text in answers]
    for number, text in enumerate(texts):
        mine = batch.owner == number
        assert moved.tokenizer.decode(batch.target[mine]) == text + "<|end|>" * (not isinstance(text, Unfinished))
    assert batch.lengths.tolist() == [len(a) for row in rows for a in row.answer_ids] and batch.n_answers == 12
    for made in (batch, lay_out(rows, 0)):  # each target is the token after the place that predicts it
        flat = made.input_ids.flatten()
        for row_number, row in enumerate(rows):
            for number, answer in enumerate(row.answer_ids):
                own = made.owner == 2 * row_number + number
                assert flat[made.source[own][1:]].tolist() == made.target[own][:-1].tolist() == list(answer[:-1])
                assert flat[made.source[own][0]] == row.prompt_ids[-1]


def test_a_common_beginning_is_there_once(rows) -> None:
    assert [row.n_shared for row in rows[:3]] == [0, 0, 0] and rows[3].n_shared > 2
    assert rows[4].n_shared == len(rows[4].answer_ids[0]) - 1 and rows[5].n_shared == len(rows[5].answer_ids[1])
    assert Row("one", (1, 2), ((3, 4),)).n_shared == 0 and Row("one", (1, 2), ((3, 4),)).n_tokens == 4
    for row in rows[3:]:
        batch = pack([row])
        assert batch.input_ids.shape[1] == row.n_tokens < len(row.prompt_ids) + sum(map(len, row.answer_ids))


def test_layout_by_hand() -> None:
    batch = pack([Row("r", (1, 2), ((3, 4), (5,))), Row("s", (1, 2, 3), ((4, 5, 6),))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert batch.attention_mask.shape == (2, 1, 6, 6) and lay_out([Row("r", (1,), ((2,),))], 0).position_ids is None
    assert batch.source.tolist() == [1, 2, 1, 8, 9, 10] and batch.target.tolist() == [3, 4, 5, 4, 5, 6]
    assert batch.ids == ("r", "s") and Row("r", (1, 2), ((3, 4), (5,))).n_tokens == 5
