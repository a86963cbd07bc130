"""Whatever is passed to a native kernel gives its twin's result or an error of this package, and never a crash."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoutattention.errors import KernelError, ScoutError
from scoutattention.runtime import workers as cpu

from ..calls import CALLS, Arguments

Spoil = Callable[[Tensor, int], Tensor]

DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
COUNTS = (-(2**62), -1, 0, 1, 3, 5, 2**62)
BROKEN = (float("nan"), float("inf"), -1e30)


def misaligned(tensor: Tensor, axis: int) -> Tensor:
    """The same numbers, one byte further than where numbers of this kind may be."""
    memory = bytearray(tensor.nbytes + 1)
    moved = torch.frombuffer(memory, dtype=torch.uint8, offset=1)
    moved.copy_(tensor.contiguous().flatten().view(torch.uint8))
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).reshape(tensor.shape)


def spaced(tensor: Tensor, axis: int) -> Tensor:
    """The same numbers, each twice as far from its neighbour along one axis."""
    return tensor.repeat_interleave(2, axis).unflatten(axis, (-1, 2)).select(axis + 1, 0)


def with_value(number: float) -> Spoil:
    def change(tensor: Tensor, axis: int) -> Tensor:
        changed = tensor.contiguous().clone()
        changed.view(-1)[axis] = torch.tensor(number).to(tensor.dtype)
        return changed

    return change


SPOILS: dict[str, Spoil] = {
    "swapped with the last axis": lambda tensor, axis: tensor.transpose(axis, -1),
    "one axis less": lambda tensor, axis: tensor.select(axis, 0),
    "one axis more": lambda tensor, axis: tensor.unsqueeze(axis),
    "a single number": lambda tensor, axis: tensor.flatten()[0],
    "nothing": lambda tensor, axis: tensor.narrow(axis, 0, 0),
    "shorter": lambda tensor, axis: tensor.narrow(axis, 0, tensor.shape[axis] - 1),
    "longer": lambda tensor, axis: tensor.repeat_interleave(2, axis),
    "spaced": spaced,
    "expanded": lambda tensor, axis: tensor.narrow(axis, 0, 1).expand(tensor.shape),
    "misaligned": misaligned,
    "elsewhere": lambda tensor, axis: tensor.to("meta"),
    **{str(dtype): lambda tensor, axis, dtype=dtype: tensor.to(dtype) for dtype in DTYPES},
    **{f"with {number}": with_value(number) for number in (-(2**31), -1, 5, 6, 255, 2**31 - 1)},
    **{f"with {number}": with_value(number) for number in BROKEN},
}
"""What may be wrong with a tensor, at or along one of its axes."""


def spoils(value: object) -> Iterator[object]:
    """The value in every way that it can be spoilt."""
    if isinstance(value, Tensor):
        for spoil in SPOILS.values():
            yield from (spoil(value, axis) for axis in range(value.dim()))
    else:
        yield from COUNTS if isinstance(value, int) else BROKEN


@st.composite
def arguments(draw, name: str) -> Arguments:
    """Arguments of a kernel, some of them spoilt, and perhaps twice."""
    torch.manual_seed(draw(st.integers(0, 3)))
    args = CALLS[name].make()
    for key in draw(st.lists(st.sampled_from(sorted(args)), max_size=3)):
        value = args[key]
        if not isinstance(value, Tensor):
            args[key] = draw(st.sampled_from(list(spoils(value))))
        elif value.numel() and value.dim() and not value.is_meta:
            axis = draw(st.integers(0, value.dim() - 1))
            args[key] = SPOILS[draw(st.sampled_from(sorted(SPOILS)))](value, axis)
    return args


def comparable(args: Arguments) -> bool:
    """Whether no argument is infinite, no number, or absurdly large."""
    numbers = [torch.as_tensor(value) for value in args.values()]
    return all(bool((number.double().abs() < 1e4).all()) for number in numbers if not number.is_meta)


def check(workers: cpu.Workers, name: str, args: Arguments) -> None:
    call = CALLS[name]
    try:
        got = call.native(workers, **args)
    except ScoutError:
        return
    if comparable(args):
        limits = {"rtol": 1e-4, "atol": 1e-4 + call.rounding(args), "equal_nan": True}
        torch.testing.assert_close(got, call.twin(**args), check_dtype=False, **limits)


def fuzz(workers: dict[str, cpu.Workers], name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.sampled_from(sorted(workers)), arguments(name))
    def run(isa: str, args: Arguments) -> None:
        check(workers[isa], name, args)

    run()


@pytest.fixture(scope="module")
def workers():
    return {isa: cpu.Workers(1, isa=isa) for isa in cpu.isa_levels()}


@pytest.mark.parametrize("name", CALLS)
def test_one_spoilt_argument_is_refused_or_understood(workers, name):
    torch.manual_seed(0)
    args = CALLS[name].make()
    for key, value in args.items():
        for spoilt in spoils(value):
            check(workers[cpu.isa_levels()[-1]], name, args | {key: spoilt})


@pytest.mark.parametrize("name", CALLS)
def test_spoilt_arguments_are_refused_or_understood(workers, name):
    fuzz(workers, name, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_many_spoilt_arguments_are_refused_or_understood(workers, name):
    fuzz(workers, name, 2000)


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers() | st.none(), st.text() | st.sampled_from(cpu.isa_levels()), st.floats())
def test_any_settings_are_refused_or_give_workers(threads, isa, delay_s):
    try:
        with cpu.Workers(threads, isa=isa, delay_s=delay_s) as workers:
            assert workers.threads >= 1
            assert workers.isa in cpu.isa_levels()
    except ScoutError:
        return


@pytest.mark.parametrize("name", ["partial", "digests", "codes", "read", "linear", "top blocks"])
def test_closed_workers_say_so(name):
    workers = cpu.Workers(1)
    workers.close()
    with pytest.raises(KernelError, match="closed"):
        CALLS[name].native(workers, **CALLS[name].make())
