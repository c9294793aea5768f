"""What is kept for backward lies in blocks: same bits, each tensor once, and the next graph writes over the last."""

import pytest
import torch
from torch import nn

from dpo_workbench.models import kept as module
from dpo_workbench.models.kept import Kept
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Row, pack


@pytest.fixture
def room(monkeypatch):
    """Blocks of 4 kB, and tensors from 64 bytes on go into them."""
    monkeypatch.setattr(module, "BLOCK", 4096)
    monkeypatch.setattr(module, "SMALLEST", 64)
    return Kept(nn.Module())


def used(room: Kept) -> int:
    return sum(map(len, room._blocks[: room._block])) + room._used


def square(room: Kept, x: torch.Tensor) -> torch.Tensor:
    with room.anew():
        return (x * x).sum()


def test_gradients_of_a_model_are_the_same_bits(moved) -> None:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 200, (3, 40), generator=draw).tolist()
    rows = [Row(f"r{i}", tuple(x[:20]), (tuple(x[20:31]), tuple(x[31:]))) for i, x in enumerate(ids)]
    objective = loop.preference_objective({r.id: (-50.0, -50.0) for r in rows}, TrainConfig(), rows, moved)
    batches, room, found = [pack(rows[:2]), pack(rows[2:])], Kept(moved.network), []
    for with_room in (False, True):
        for p in moved.adapter_parameters():
            p.grad = None
        with moved.active(trainable=True) as network:
            for batch in batches:
                if with_room:
                    with room.anew():
                        loss = objective(network, batch)[0]
                else:
                    loss = objective(network, batch)[0]
                loss.backward()
        found.append([p.grad.clone() for p in moved.adapter_parameters()])
    assert used(room) > 10_000
    assert any(g.abs().max() > 0 for g in found[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("turn", [lambda x: x, lambda x: x.T, lambda x: x[:, ::3], lambda x: x[:1].expand(9, -1)])
def test_views_come_back_as_they_were(room, turn) -> None:
    seen, x = [], torch.randn(6, 30, requires_grad=True)

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            seen.extend(ctx.saved_tensors)
            return torch.ones_like(seen[0])

    view = turn(x)
    with room.anew():
        out = Look.apply(view)
    out.backward()
    assert torch.equal(seen[0], view)
    assert seen[0].data_ptr() == room._blocks[0].data_ptr()
    if view.numel() == x.numel():  # dense
        assert seen[0].stride() == view.stride()


def test_a_tensor_that_two_functions_keep_is_copied_once(room) -> None:
    x = torch.randn(64, requires_grad=True)
    with room.anew():
        out = (x * x).sum() + (x * x * 2).sum()
    assert used(room) == 256
    out.backward()
    torch.testing.assert_close(x.grad, 6 * x.detach())


def test_a_tensor_at_a_freed_ones_place_is_not_taken_for_it(room) -> None:
    x = torch.zeros(8, requires_grad=True)
    with room.anew():
        total = torch.zeros(())
        for i in range(40):  # the factor is freed after each product, and the next one may get its place
            total = total + (x.repeat(8) * torch.full((64,), float(i))).sum()
    total.backward()
    assert torch.equal(x.grad, torch.full((8,), 8.0 * sum(range(40))))


def test_what_is_changed_in_place_later_does_not_spoil_what_was_kept(room) -> None:
    x, factor = torch.ones(64, requires_grad=True), torch.full((64,), 3.0)
    with room.anew():
        first = (x * factor).sum()
        factor.mul_(2)
        both = first + (x * factor).sum()
    both.backward()
    assert torch.equal(x.grad, torch.full((64,), 9.0))


def test_the_next_graph_takes_the_place_of_the_last(room) -> None:
    x = torch.randn(5000 // 4, requires_grad=True)  # does not fit into a block of the usual size
    square(room, x).backward()
    places = [b.data_ptr() for b in room._blocks]
    for _ in range(3):
        square(room, x).backward()
    assert [b.data_ptr() for b in room._blocks] == places
    torch.testing.assert_close(x.grad, 8 * x.detach())


def test_weights_and_what_is_small_are_not_copied(room) -> None:
    layer = nn.Linear(40, 3)
    room = Kept(layer)
    with room.anew():
        layer(torch.ones(2, 40, requires_grad=True))  # keeps its weight and its input
        (torch.ones(3, 3, requires_grad=True) @ layer.weight[:, :30]).sum()  # a view of the weight, and 36 bytes
    assert used(room) == 2 * 40 * 4


def test_with_weights_elsewhere_nothing_is_kept_here() -> None:
    room, x = Kept(nn.Linear(3, 3, device="meta")), torch.randn(2000, requires_grad=True)
    square(room, x).backward()
    assert room._blocks == []
    assert torch.equal(x.grad, 2 * x.detach())


def test_an_error_inside_leaves_no_hook_behind(room) -> None:
    with pytest.raises(ZeroDivisionError), room.anew():
        raise ZeroDivisionError
    x = torch.randn(64, requires_grad=True)
    (x * x).sum()
    assert used(room) == 0
