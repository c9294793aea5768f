"""Does every tensor reach the GPU? The package on fake CUDA tensors, without a GPU: results/fake_cuda.json.

    python benchmarks/fake_cuda.py        # three minutes; needs a build of PyTorch with CUDA, but no GPU and no driver

A fake tensor (`torch._subclasses.FakeTensorMode`) has a shape, a dtype and a device, but no values. PyTorch raises when
an operation gets fake tensors of two devices, as it does on a GPU. Here everything that the package puts on `cuda` is
fake, and what it computes on the CPU is real. So this finds tensors that were left on the CPU. It also counts how often
values of a GPU tensor are read, because Python waits for the GPU at each of these places. It says nothing about values,
speed, or kernels: FlexAttention is not compiled, only its own description of its outputs is used.

The controls put one tensor on the CPU on purpose, and must raise.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention.flex_attention import BlockMask
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # so that a clone needs no installation

from gpu import DTYPES, random_model  # noqa: E402

from dpo_workbench.common.environment import describe  # noqa: E402
from dpo_workbench.common.files import write_json  # noqa: E402
from dpo_workbench.models.attention import pack_attention  # noqa: E402
from dpo_workbench.models.generation import generate  # noqa: E402
from dpo_workbench.models.loading import Model, load_model  # noqa: E402
from dpo_workbench.training.config import TrainConfig  # noqa: E402
from dpo_workbench.training.guards import HeldOut  # noqa: E402
from dpo_workbench.training.logps import answer_logps  # noqa: E402
from dpo_workbench.training.loop import TrainState, train_step  # noqa: E402
from dpo_workbench.training.losses import LOSSES, Likelihood, Preference  # noqa: E402
from dpo_workbench.training.packing import Batch, Row, micro_batches  # noqa: E402
from dpo_workbench.training.reference import choose_packing  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "fake_cuda.json"
READS = {Tensor.item: float, Tensor.__float__: float, Tensor.__int__: int, Tensor.__bool__: bool, Tensor.tolist: None}
MOVES = {Tensor.to, Tensor.cpu}
GPUS = {"flex_attention": ((9, 0), "bf16"), "sdpa": ((7, 5), "fp16")}  # by compute capability: an H100, and a T4
ROWS = [
    Row("a", tuple(range(10, 40)), (tuple(range(40, 60)), tuple(range(60, 75)))),
    Row("b", tuple(range(10, 16)), ((20, 21, 22, 23), (20, 21, 30))),  # the answers share two tokens
    Row("c", tuple(range(50, 150)), ((20, 21), (30, 31, 32))),
]
REFERENCE = {row.id: (-10.0, -11.0) for row in ROWS}


class Generator(torch.Generator):
    """A generator on the CPU, whichever device was asked for: one on a GPU needs a driver."""

    def __new__(cls, _device: Any = None) -> Generator:
        return super().__new__(cls)


class FakeGPU(TorchFunctionMode):
    """Inside, what is created on `cuda` or moved there is fake; what is on the CPU stays real.

    A value that is read from the GPU is made up (zero, or False), and `reads` counts it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.reads: Counter[str] = Counter()
        self.n_backward = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_gpu = any(isinstance(leaf, Tensor) and leaf.device.type == "cuda" for leaf in leaves)
        if on_gpu and function in READS:
            self.reads[_caller()] += 1
            return torch.zeros(args[0].shape).tolist() if function is Tensor.tolist else READS[function](0)
        if on_gpu and function is Tensor.backward:
            self.n_backward += 1
            with self, mock.patch.object(torch._C, "_current_graph_task_id", lambda: self.n_backward):
                return backward(args[0])  # the number is what activation checkpointing recognizes a pass by
        to_gpu = any(isinstance(leaf, (torch.device, str)) and str(leaf).startswith("cuda") for leaf in leaves)
        if function is torch.tensor and to_gpu:
            with self:
                return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        with self.mode if on_gpu or to_gpu else nullcontext():
            if function is Tensor.to and not on_gpu:  # a copy of the real tensor, to which nothing refers then
                args = (torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype), *args[1:])
            result = function(*args, **kwargs)
        back = any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(result))
        if on_gpu and back and function not in MOVES:
            raise RuntimeError(f"{function} mixed a tensor on the GPU with one on the CPU")
        return result


def stay(parameter: Tensor, moved: Tensor) -> None:
    """What `module.to(device)` does to a fake parameter that is on that device already."""
    assert (parameter.device, parameter.dtype) == (moved.device, moved.dtype)


def _caller() -> str:
    """The function of the package that is being run, or that of a library if the package has called it."""
    frame, place = sys._getframe(2), ""
    while frame and not place.startswith("dpo_workbench"):
        file = Path(frame.f_code.co_filename)
        if ROOT in file.parents or not place:
            place = f"{file.relative_to(ROOT) if ROOT in file.parents else file.name}: {frame.f_code.co_name}"
        frame = frame.f_back
    return place


def walk(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> dict[Any, list[Tensor | None]]:
    """The gradients that arrive at each node of the graph. PyTorch's own engine asks the driver for streams."""
    roots = [get_gradient_edge(output) for output in outputs]
    expected: Counter[Any] = Counter(edge.node for edge in roots)  # how many gradients arrive at a node
    seen, queue = set(), [edge.node for edge in roots]
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            parents = [parent for parent, _ in node.next_functions if parent]
            expected.update(parents)
            queue += parents
    arrived: dict[Any, list[Tensor | None]] = {}
    queue = []

    def send(node: Any, place: int, gradient: Tensor | None) -> None:
        there = arrived.setdefault(node, [])
        there += [None] * (place + 1 - len(there))
        if gradient is not None:
            there[place] = gradient if there[place] is None else there[place] + gradient
        expected[node] -= 1
        if not expected[node]:
            queue.append(node)

    for edge, gradient in zip(roots, gradients, strict=True):
        send(edge.node, edge.output_nr, gradient)
    while queue:
        node = queue.pop()
        if hasattr(node, "variable"):  # the end: a parameter
            continue
        given = arrived[node]
        if any(gradient is not None for gradient in given):
            found = node(*given) if callable(node) else node.apply(*_with_zeros(node, given))
            found = found if isinstance(found, tuple) else (found,)
        else:
            found = (None,) * len(node.next_functions)
        for (parent, place), gradient in zip(node.next_functions, found, strict=False):
            if parent:
                send(parent, place, gradient)
    return arrived


def _with_zeros(node: Any, gradients: list[Tensor | None]) -> list[Tensor]:
    """A function that is written in Python gets zeros for missing gradients, on the device of its output."""
    missing = [torch.zeros(m.shape, dtype=m.dtype, device=m.device) for m in node._input_metadata]
    return [there if there is not None else zeros for there, zeros in zip_longest(gradients, missing)]


def backward(loss: Tensor) -> None:
    """`loss.backward()` by `walk`."""
    for node, gradients in walk([loss], [torch.ones_like(loss)]).items():
        leaf = getattr(node, "variable", None)
        if leaf is not None and gradients[0] is not None:
            assert (gradients[0].device, gradients[0].shape) == (leaf.device, leaf.shape)
            leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]


def grad(outputs: Any, inputs: Any, grad_outputs: Any, **_: Any) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` by `walk`; FlexAttention calls it."""
    arrived = walk(tree_leaves(outputs), tree_leaves(grad_outputs))
    edges = [get_gradient_edge(tensor) for tensor in tree_leaves(inputs)]
    return tuple((arrived.get(edge.node) or [None] * 9)[edge.output_nr] for edge in edges)


def check(build: Callable[[], Model], attention: str, gpu: FakeGPU) -> dict[str, Any]:
    """Run every part of training and generation once; raise if tensors of two devices meet."""
    model = build()
    assert model.device.type == "cuda" and model.uses_flex_attention == (attention == "flex_attention")
    config = TrainConfig(batch_size=len(ROWS), micro_tokens=200)
    reads: dict[str, dict[str, int]] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        gpu.reads.clear()
        result = work()
        reads[name] = dict(gpu.reads)
        return result

    with redirect_stdout(None):  # it says what follows from values that are made up
        part("choice of packing", partial(choose_packing, model, ROWS, config))
    policy = model.with_new_adapter()
    interrupts = mock.Mock()
    for packing in (True, False):
        settings = replace(config, packing=packing)
        layout = "packs" if packing else "plain sequences"
        part(f"reference logps, {layout}", partial(forward, model, settings))
        part(f"held-out pairs, {layout}", partial(HeldOut(ROWS, REFERENCE).log_ratios, policy, settings))
        for checkpointing in (False, True) if packing else (False,):
            state = TrainState(policy, replace(settings, checkpointing=checkpointing))
            step = partial(train_step, state, ROWS, Preference(REFERENCE, settings), interrupts)
            part(f"training step, {layout}{', checkpointing' * checkpointing}", step)
            without = [n for n, p in policy.network.named_parameters() if p.requires_grad and p.grad is None]
            assert not without, without
        part(f"SFT step, {layout}", partial(train_step, state, ROWS, Likelihood(), interrupts))
    for name in LOSSES:
        smoothing = 0.1 if "label_smoothing" in LOSSES[name].settings else 0.0
        settings = replace(config, loss=name, label_smoothing=smoothing)
        with policy.active(trainable=True) as network:
            objective, batch = Preference(REFERENCE, settings), batches(policy, config)[0]
            part(f"loss {name}", partial(objective.loss, network, batch, ROWS, 1))
    for samples, temperature in ((1, 0.0), (4, 1.0)):
        for limit in (4, 8):
            draw = partial(generate, policy, ["t3 t4", "t5"], samples=samples, temperature=temperature)
            part(f"{samples} samples of {limit} tokens", partial(draw, max_new_tokens=limit, repetition_penalty=1.2))
    return {"dtype": str(model.dtype)[6:], "reads": reads}


def forward(model: Model, config: TrainConfig) -> None:
    with model.active() as network, torch.no_grad():
        for batch in batches(model, config):
            answer_logps(network, batch)


def batches(model: Model, config: TrainConfig) -> list[Batch]:
    return list(micro_batches(ROWS, model, config))


def controls(build: Callable[[], Model]) -> dict[str, str]:
    """For each tensor that is put on the CPU: what PyTorch raised. A tensor that raises nothing ends the script."""
    found = {}

    def must_raise(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        else:
            raise SystemExit(f"Control failed: with {name} on the CPU nothing was raised.")

    model = build()
    policy = model.with_new_adapter()
    (batch, *_) = batches(policy, TrainConfig(micro_tokens=200))
    wrong = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "owner": batch.owner}
    wrong |= {"target": batch.target}
    bad = {name: replace(batch, **{name: torch.zeros(t.shape, dtype=t.dtype)}) for name, t in wrong.items()}
    if isinstance(batch.attention_mask, BlockMask):
        bad["attention_mask"] = replace(batch, attention_mask=batch.attention_mask.to("cpu"))
    else:
        bad["attention_mask"] = replace(batch, attention_mask=torch.ones(batch.attention_mask.shape, dtype=torch.bool))
    with policy.active(trainable=True) as network:
        for name, changed in bad.items():
            must_raise(name, partial(Preference(REFERENCE, TrainConfig()).loss, network, changed, ROWS, 1))
        weight = policy.adapter_parameters()[0]
        owner = next(m for m in network.modules() if any(p is weight for p in m.parameters(recurse=False)))
        owner.weight = torch.nn.Parameter(torch.zeros(weight.shape))
        must_raise("an adapter's matrix", partial(answer_logps, network, batch))
    return found


def build_nano(dtype: str) -> Model:
    """Read on the CPU and then moved, because transformers reads files in threads, where nothing is fake."""
    model = load_model("nano", device="cpu", dtype=getattr(torch, DTYPES[dtype]))
    network = model.network.to("cuda")
    shared = replace(model._shared, network=network, pack_attention=pack_attention(network, torch.device("cuda")))
    return replace(model, _shared=shared)


def build_qwen2(dtype: str) -> Model:
    return random_model("0.5B", dtype, "cuda", n_layers=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="another results file")
    file = parser.parse_args().results
    if not torch.backends.cuda.is_built():
        print("This needs a build of PyTorch with CUDA (no GPU). This one has none, so nothing is checked.")
        return
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    found: dict[str, Any] = {}
    for attention, (capability, dtype) in GPUS.items():
        for name, build in (("nano", build_nano), ("Qwen2 0.5B, 2 of its layers", build_qwen2)):
            gpu = FakeGPU()
            with (
                mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
                mock.patch.object(torch, "Generator", Generator),
                mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),  # the loss scale
                mock.patch.object(torch.autograd, "grad", grad),
                mock.patch.object(FakeTensor, "tolist", Tensor.tolist),  # its own reads value by value
                mock.patch.object(torch.utils, "swap_tensors", stay),
                torch.compiler.set_stance("force_eager"),
                gpu,
            ):
                made = check(partial(build, dtype), attention, gpu)
                made["controls"] = controls(partial(build, dtype))
            found[f"{name}, {attention}"] = made
            print(f"{name}, {attention}: no tensor on the wrong device", flush=True)
    facts = {"command": "python benchmarks/fake_cuda.py", "date": date.today().isoformat(), "machine": describe()}
    facts |= {"gpu": torch.cuda.is_available(), "cuda": torch.version.cuda, "losses": list(LOSSES)}
    write_json(file, {**facts, "checked": found})


if __name__ == "__main__":
    main()
