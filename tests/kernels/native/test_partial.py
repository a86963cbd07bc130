"""The native kernels against float64, for every instruction set of this CPU and every dtype."""

import importlib
import sys

import pytest
import torch

import scoutattention
from scoutattention.errors import ConfigError, KernelError
from scoutattention.hardware.host import usable_cores
from scoutattention.kernels import reference
from scoutattention.runtime import workers as cpu
from scoutattention.types import BlockList

from ..cases import CASES, GARBAGE, Case, assert_close, exact, make_call, scorer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=cpu.isa_levels())
def workers(request):
    with cpu.Workers(1, isa=request.param) as workers:
        yield workers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_partial_is_the_reference(workers, case, dtype):
    call = make_call(case, dtype)
    got = workers.partial(call.q, call.k, call.v, call.blocks, call.scale, with_mean_key=True)
    assert_close(got, exact(call), case.q_scale)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(threads):
    """How a sequence's blocks are split over tasks follows from their number alone."""
    B, H, G, D, P, N = 6, 2, 3, 64, 32, 70
    torch.manual_seed(0)
    q, (k, v) = torch.randn(B, H, G, D), torch.randn(2, 100, H, P, D)
    index, length = torch.randint(0, 100, (B, H, N)).int(), torch.full((B, H, N), P, dtype=torch.int32)
    length[1:, :, 33:] = 0
    with cpu.Workers(min(threads, usable_cores())) as several:
        whole = several.partial(q, k, v, BlockList(index, length), 0.125)
        for row in range(B):
            one = slice(row, row + 1)
            alone = several.partial(q[one], k, v, BlockList(index[one], length[one]), 0.125)
            assert torch.equal(alone.out, whole.out[one])
            assert torch.equal(alone.lse, whole.lse[one])


def test_mean_key_only_when_asked(workers):
    call = make_call(Case("plain"), torch.float32)
    got = workers.partial(call.q, call.k, call.v, call.blocks, call.scale)
    assert_close(got, exact(call)._replace(mean_key=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_queries_of_any_float_dtype_and_stride(workers, dtype):
    call = make_call(Case("query"), torch.float32)
    q = call.q.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    got = workers.partial(q, call.k, call.v, call.blocks, call.scale)
    want = workers.partial(q.float().contiguous(), call.k, call.v, call.blocks, call.scale)
    assert torch.equal(got.out, want.out)


def test_exponential_is_accurate_over_its_range(workers):
    """Two keys, scores 0 and x: the second's weight is exp(x) / (1 + exp(x))."""
    x = torch.linspace(-85, 0, 4001)
    k, v = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1), torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    blocks = BlockList(torch.zeros(1, 1, 1, dtype=torch.int32), torch.full((1, 1, 1), 2, dtype=torch.int32))
    got = workers.partial(x.reshape(1, 1, -1, 1), k, v, blocks, 1.0)
    torch.testing.assert_close(got.out.flatten().double(), torch.sigmoid(x.double()), rtol=6e-7, atol=0)


def test_half_precision_pages_are_widened_exactly(workers):
    """One key a page, so that the output is the value: zeros, subnormals and the largest of either sign."""
    v = torch.tensor([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.0, -65504.0, 65504.0], dtype=torch.float16)
    v = v.repeat(4).reshape(1, 1, 1, 32)
    blocks = BlockList(torch.zeros(1, 1, 1, dtype=torch.int32), torch.ones(1, 1, 1, dtype=torch.int32))
    got = workers.partial(torch.zeros(1, 1, 1, 32), torch.zeros_like(v), v, blocks, 1.0)
    assert torch.equal(got.out.flatten(), v.float().flatten())


@pytest.mark.parametrize("G", [1, 3, 7])
@pytest.mark.parametrize("D", [64, 80, 128])
def test_digest_scores_are_the_reference(workers, G, D):
    torch.manual_seed(0)
    B, H, S = 2, 3, 700
    q = torch.randn(B, H, G, D)
    digests = torch.randn(S, 2, H, 2 * D)[:, 1]
    for N in (0, 1, 15, 16, 17, 600):
        pages = torch.randint(0, S, (B, H, N + 1), dtype=torch.int32)[..., :N]
        want = reference.score_min_max(q.double(), digests, pages)
        torch.testing.assert_close(
            scorer(workers, "score_min_max")(q, digests, pages=pages), want.float(), rtol=1e-5, atol=1e-4
        )


def test_digest_scores_of_a_list_that_is_split_over_tasks(workers):
    torch.manual_seed(0)
    q, digests = torch.randn(1, 1, 3, 64), torch.randn(700, 1, 128)
    pages = torch.randint(0, 700, (1, 1, 2001), dtype=torch.int32)
    want = reference.score_min_max(q.double(), digests, pages)
    torch.testing.assert_close(
        scorer(workers, "score_min_max")(q, digests, pages=pages), want.float(), rtol=1e-5, atol=1e-4
    )


def good() -> dict:
    call = make_call(Case("good"), torch.float32)
    return {"q": call.q, "k": call.k, "v": call.v, "blocks": call.blocks, "scale": call.scale}


def with_block(args: dict, **first: int) -> BlockList:
    index, length = (table.clone() for table in args["blocks"])
    index[0, 0, 0] = first.get("index", int(index[0, 0, 0]))
    length[0, 0, 0] = first.get("length", int(length[0, 0, 0]))
    return BlockList(index, length)


BAD = {
    "dtype of k": (lambda a: {"k": a["k"].int(), "v": a["v"].int()}, "int32"),
    "k and v of two dtypes": (lambda a: {"v": a["v"].half()}, "float16"),
    "k not contiguous": (lambda a: {"k": a["k"].transpose(2, 3).contiguous().transpose(2, 3)}, "contiguous"),
    "head dim of q": (lambda a: {"q": a["q"][..., :32]}, r"\[1, 2, 3, 32\]"),
    "heads of q": (lambda a: {"q": a["q"][:, :1]}, r"\[1, 1, 3, 64\]"),
    "axes of q": (lambda a: {"q": a["q"][0]}, r"\[2, 3, 64\]"),
    "no query heads": (lambda a: {"q": a["q"][:, :, :0]}, "at least 1"),
    "shape of v": (lambda a: {"v": a["v"][:-1]}, r"\[23, 2, 32, 64\]"),
    "device": (lambda a: {"k": a["k"].to("meta"), "v": a["v"].to("meta")}, "meta"),
    "dtype of index": (lambda a: {"blocks": a["blocks"]._replace(index=a["blocks"].index.long())}, "int64"),
    "shape of index": (lambda a: {"blocks": a["blocks"]._replace(index=a["blocks"].index[0])}, r"\[2, 8\]"),
    "shape of length": (lambda a: {"blocks": a["blocks"]._replace(length=a["blocks"].length[..., :3])}, "1, 2, 3"),
    "stride of index": (lambda a: {"blocks": BlockList(*(table[..., ::2] for table in a["blocks"]))}, "stride"),
    "index too large": (lambda a: {"blocks": with_block(a, index=24)}, r"24 is outside 0\.\.23"),
    "index garbage": (lambda a: {"blocks": with_block(a, index=GARBAGE)}, str(GARBAGE)),
    "index negative": (lambda a: {"blocks": with_block(a, index=-1)}, "-1 is outside"),
    "length too large": (lambda a: {"blocks": with_block(a, length=33)}, r"33 is outside 0\.\.32"),
    "length negative": (lambda a: {"blocks": with_block(a, length=-1)}, "-1 is outside"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(workers, name):
    change, message = BAD[name]
    args = good()
    with pytest.raises(KernelError, match=message):
        workers.partial(**(args | change(args)))
    assert_close(workers.partial(**args), exact(make_call(Case("good"), torch.float32))._replace(mean_key=None))


def test_bad_digest_arguments_are_named(workers):
    q, digests, pages = torch.randn(1, 2, 3, 64), torch.randn(5, 2, 128), torch.zeros(1, 2, 4, dtype=torch.int32)
    for changed, message in [
        ({"digests": digests.half()}, "float16"),
        ({"digests": digests[..., :64]}, r"\[5, 2, 64\]"),
        ({"digests": digests[..., ::2].repeat(1, 1, 2).transpose(0, 1).transpose(0, 2)}, r"it must be \[S, 2, 128\]"),
        ({"digests": digests.transpose(1, 2).contiguous().transpose(1, 2)}, "digests has strides"),
        ({"pages": pages.long()}, "int64"),
        ({"pages": pages[:, 0]}, r"\[1, 4\]"),
        ({"pages": pages + 5}, r"5 is outside 0\.\.4"),
        ({"pages": pages - 1}, "-1 is outside"),
        ({"q": q.to("meta")}, "meta"),
    ]:
        with pytest.raises(KernelError, match=message):
            scorer(workers, "score_min_max")(**({"q": q, "digests": digests, "pages": pages} | changed))


def test_isa_levels_are_named_from_worst_to_best():
    levels = cpu.isa_levels()
    assert levels[0] == "portable"
    with cpu.Workers(1) as workers:
        assert workers.isa == levels[-1]


def test_bad_settings_are_named():
    cores = cpu.usable_cores()
    with pytest.raises(KernelError, match=r"isa='sse9'.*portable"):
        cpu.Workers(1, isa="sse9")
    for threads in (0, -1, cores + 1):
        with pytest.raises(ConfigError, match=rf"workers={threads} is outside 1\.\.{cores}"):
            cpu.Workers(threads)
    with pytest.raises(ConfigError, match="delay_s=-1"):
        cpu.Workers(1, delay_s=-1.0)


def test_a_missing_extension_names_the_command_that_builds_it(monkeypatch):
    monkeypatch.delattr(scoutattention, "_native")
    monkeypatch.setitem(sys.modules, "scoutattention._native", None)
    monkeypatch.delitem(sys.modules, "scoutattention.runtime.workers")
    with pytest.raises(KernelError, match=r"pip install \."):
        importlib.import_module("scoutattention.runtime.workers")
