"""Every public kernel of the CPU as a call to be spoilt: its arguments, the native function and its plain twin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoutattention.kernels import plain, reference, reference_rows
from scoutattention.kernels.native import NativeOps, RowKernels
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.reference_rows import HeadPlacing, LayerEnd
from scoutattention.kernels.requests import CodesRequest, NearRequest, Preference, TopRequest
from scoutattention.runtime.memory import CPU
from scoutattention.runtime.packed import from_codes, from_words
from scoutattention.runtime.stored import StoredKind, StoredMatrix, StoredRows, stored
from scoutattention.types import BlockList, GuardRequest, Partial, Rope, SplitRequest

from .cases import Arguments, code_rounding, of_closed, scorer, stored_rounding
from .stored_blocks import random_blocks

B, H, G, D, P, S, N = 2, 2, 3, 24, 5, 6, 4
PLAIN = PlainOps(CPU)


@dataclass(frozen=True)
class KernelCall:
    """make: fitting arguments, tensors and numbers.   native, twin: give a tensor, or a tuple of them.

    rounding: what may lie between the two besides a ten-thousandth, by the arguments.
    """

    make: Callable[[], Arguments]
    native: Callable[..., Any]
    twin: Callable[..., Any]
    rounding: Callable[[Arguments], float] = lambda args: 0.0


def ints(end: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(0, end, shape, dtype=dtype)


def exact_partial(q: Tensor, k: Tensor, v: Tensor, index: Tensor, length: Tensor, scale: float) -> Partial:
    blocks = BlockList(index, length)
    return reference.partial(q.double(), k.double(), v.double(), blocks, scale, with_mean_key=True)


def lists() -> Arguments:
    """Pages that are scored."""
    return {"pages": ints(S, B, H, N), "closed": ints(N + 1, B, dtype=torch.int64)}


def code_arguments() -> Arguments:
    """Whole-number queries and small steps: rounding the products to 8 bits changes little."""
    bounds = torch.stack([torch.randn(S, H, D), torch.full((S, H, D), 2.0**-9)], dim=-2).half()
    codes = ints(256, S, H, 2, P, 4, dtype=torch.uint8)
    return {"q": ints(255, B, H, G, D).float() - 127, "codes": codes, "bounds": bounds} | lists()


def joined_arguments() -> Arguments:
    """Two partials [B, H, G, D], with what corrects one of them."""
    lse = torch.randn(2, B, H, G)
    names = ("a_out", "b_out", "q", "q_hat", "mean_key")
    return dict(zip(names, torch.randn(5, B, H, G, D), strict=True)) | {"a_lse": lse[0], "b_lse": lse[1]}


def split_request(
    slot_of: Tensor, asked: Tensor, all_of_it: Tensor, threshold: Tensor, **choice: Tensor
) -> SplitRequest:
    """What `split_choice` takes, from single tensors."""
    counts = torch.zeros((2, B, H), dtype=torch.int64)
    return SplitRequest(**choice, slots=(slot_of, S), rows=(asked, all_of_it, threshold), always=1, counts=counts)


def guard_request(
    blocks: Tensor, absent: Tensor, wishes: Tensor, scouted: Tensor, served: Tensor, **rest: Any
) -> GuardRequest:
    """What `find_late` takes, from single tensors."""
    counts = torch.zeros((2, B, H), dtype=torch.int64)
    return GuardRequest((blocks, absent, wishes), (scouted, served), **rest, counts=counts)


def updated(update: Callable[..., None], interest: Tensor, **args: Any) -> Tensor:
    """The interest that a function leaves behind."""
    update(changed := copy(interest), **args)
    return changed


def copy(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.clone(memory_format=torch.preserve_format)


def near_request(closed: Tensor, entry: Tensor, **choice: Tensor) -> NearRequest:
    """What `near_list` takes, from single tensors."""
    table = torch.arange(B * N, dtype=torch.int32).view(B, N) % S
    return NearRequest(table, **choice, chosen=2, closed=closed, opened=(entry, entry % P), size=P)


def appended(append: Callable[..., None], pool: Tensor, k: Tensor, fill: Tensor) -> Tensor:
    """The pool that a function leaves behind."""
    append(k, k, (changed := copy(pool), changed), torch.arange(B) * 2, fill)
    return changed


def written_arguments() -> Arguments:
    """Keys of blocks, and memory for their codes."""
    codes, bounds = reference.key_codes(torch.randn(S, H, P, D))
    return {"k": torch.randn(N, H, P, D), "codes": codes, "bounds": bounds, "pages": torch.randperm(S)[:N]}


def written(
    write: Callable[[CodesRequest], None],
    k: Tensor,
    codes: Tensor,
    bounds: Tensor,
    pages: Tensor,
    basis: Tensor | None = None,
    which: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and bounds that a function leaves behind."""
    codes, bounds = copy(codes), copy(bounds)
    write(CodesRequest(k, None if basis is None else (basis, which), codes, bounds, pages))
    return codes, bounds


def kept_keys(codes: Tensor, bounds: Tensor) -> Tensor:
    """What codes and bounds stand for: a key halfway between two codes may have either."""
    return from_codes(from_words(codes, 2, bounds.shape[-1]), bounds)


def placing_arguments() -> Arguments:
    """How three queries, a key and a value of three tokens are placed."""
    tables = {"cos": torch.randn(3, D), "sin": torch.randn(3, D)}
    return {"queries": 3, "bias": torch.randn(5 * D), "norm": torch.randn(4, D), "eps": 1e-2} | tables


def head_placing(cos: Tensor, sin: Tensor, **how: Any) -> HeadPlacing:
    return HeadPlacing(rope=Rope(cos, sin), **how)


def ended_layer(x: Tensor, attended: Tensor, by: LayerEnd) -> tuple[Tensor, Tensor]:
    """The end of a layer, from single operations in float64."""
    output, gate_up, down = (matrix.double() for matrix in (by.output, by.gate_up, by.down))
    x, normed = reference_rows.add_norm(x, reference_rows.linear(attended, output), by.post_norm.double(), by.eps)
    gated = reference_rows.swiglu(reference_rows.linear(normed, gate_up))
    return reference_rows.add_norm(x, reference_rows.linear(gated, down), by.next_norm.double(), by.eps)


def top_request(count: int, **args: Tensor) -> TopRequest:
    """What `top_by_key_codes` takes, from single tensors."""
    return TopRequest(**args, scale=1.0, how=Preference(count, (1, 1), largest=False))


def only(names: str) -> Callable[[], Arguments]:
    return lambda: {name: value for name, value in joined_arguments().items() if name in names.split()}


CALLS = {
    "partial": KernelCall(
        lambda: {
            "q": torch.randn(B, H, G, D),
            "k": torch.randn(S, H, P, D),
            "v": torch.randn(S, H, P, D),
            "index": ints(S, B, H, N),
            "length": ints(P + 1, B, H, N),
            "scale": 0.2,
        },
        lambda workers, q, k, v, index, length, scale: workers.submit(
            q, k, v, BlockList(index, length), scale, with_mean_key=True
        ).wait(),
        exact_partial,
    ),
    "digests": KernelCall(
        lambda: {"q": torch.randn(B, H, G, D), "digests": torch.randn(S, H, 2 * D)} | lists(),
        lambda workers, closed, **args: of_closed(scorer(workers, "score_min_max")(closed=closed, **args), closed),
        lambda closed, **args: of_closed(PLAIN.score_min_max(**args, closed=closed, scale=1.0), closed),
    ),
    "codes": KernelCall(
        code_arguments,
        lambda workers, closed, **args: of_closed(scorer(workers, "score_key_codes")(closed=closed, **args), closed),
        lambda closed, **args: of_closed(PLAIN.score_key_codes(**args, closed=closed, scale=1.0), closed),
        code_rounding,
    ),
    "write codes": KernelCall(
        written_arguments,
        lambda workers, **args: written(NativeOps(workers).write_key_codes, **args),
        lambda **args: written(PLAIN.write_key_codes, **args),
    ),
    "write codes in a basis": KernelCall(
        lambda: written_arguments() | {"basis": torch.randn(3, H, D, D), "which": ints(3, N, dtype=torch.int64)},
        lambda workers, **args: kept_keys(*written(NativeOps(workers).write_key_codes, **args)),
        lambda **args: kept_keys(*written(PLAIN.write_key_codes, **args)),
        lambda args: float(args["k"].float().norm() * args["basis"].float().norm()),
    ),
    "read": KernelCall(
        lambda: {"data": ints(1000, 4, 64, dtype=torch.int64)},
        lambda workers, data: torch.tensor(float(workers.read(data))),
        lambda data: torch.tensor(float(int(data.flatten().view(torch.int64).sum()) % 2**64 if data.numel() else 0)),
    ),
    "linear": KernelCall(
        lambda: {"x": torch.randn(3, D), "weight": torch.randn(7, D)},
        lambda workers, x, weight: RowKernels(workers).linear(x, weight),
        lambda x, weight: reference_rows.linear(x.double(), weight.double()),
    ),
    "linear of each row": KernelCall(
        lambda: {"x": torch.randn(3, D), "weight": torch.randn(3, 7, D)},
        lambda workers, x, weight: RowKernels(workers).linear(x, weight),
        lambda x, weight: reference_rows.linear(x.double(), weight.double()),
    ),
    "linear of stored blocks": KernelCall(
        lambda: {"x": torch.randn(3, 64), "data": random_blocks(StoredKind.Q4_1, 7, 64, 0.01).parts[0].data},
        lambda workers, x, data: RowKernels(workers).linear(x, StoredMatrix((StoredRows(data, StoredKind.Q4_1),), 64)),
        lambda x, data: reference_rows.linear(x.double(), stored(data, StoredKind.Q4_1, x.shape[-1])),
        stored_rounding,
    ),
    "linear of many rows with stored blocks": KernelCall(
        lambda: {"x": torch.randn(23, 64), "data": random_blocks(StoredKind.Q4_1, 7, 64, 0.01).parts[0].data},
        lambda workers, x, data: workers.native.linear_stored(x, [(data, StoredKind.Q4_1.number)], many=True),
        lambda x, data: reference_rows.linear(x.double(), stored(data, StoredKind.Q4_1, x.shape[-1])),
        stored_rounding,
    ),
    "project": KernelCall(
        lambda: {"x": torch.randn(3, 2, D), "basis": torch.randn(3, 7, D)},
        lambda workers, x, basis: workers.native.project(x, basis),
        lambda x, basis: x.double() @ basis.double().mT,
    ),
    "norm": KernelCall(
        lambda: {"x": torch.randn(3, D), "weight": torch.randn(D), "eps": 0.01},
        lambda workers, x, weight, eps: RowKernels(workers).rms_norm(x, weight, eps),
        lambda x, weight, eps: reference_rows.rms_norm(x.double(), weight, eps),
    ),
    "norm of heads": KernelCall(
        lambda: {"x": torch.randn(3, 2, D), "weight": torch.randn(2, D), "eps": 0.01},
        lambda workers, x, weight, eps: RowKernels(workers).rms_norm(x, weight, eps),
        lambda x, weight, eps: reference_rows.rms_norm(x.double(), weight, eps),
    ),
    "add norm": KernelCall(
        lambda: {"x": torch.randn(3, D), "change": torch.randn(3, D), "weight": torch.randn(D), "eps": 1e-2},
        lambda workers, **args: RowKernels(workers).add_norm(**args),
        lambda x, change, weight, eps: reference_rows.add_norm(x.float(), change.float(), weight.float(), eps),
    ),
    "place heads": KernelCall(
        lambda: {"x": torch.randn(3, 5, D)} | placing_arguments(),
        lambda workers, x, **how: RowKernels(workers).place_heads(x, head_placing(**how)),
        lambda x, **how: reference_rows.place_heads(x.float(), head_placing(**how)),
    ),
    "project heads": KernelCall(
        lambda: {"x": torch.randn(3, 7), "weight": torch.randn(5 * D, 7)} | placing_arguments(),
        lambda workers, x, weight, **how: RowKernels(workers).project_heads(x, weight, head_placing(**how)),
        lambda x, weight, **how: reference_rows.place_heads(
            reference_rows.linear(x.float(), weight.float()).view(len(x), -1, D), head_placing(**how)
        ),
    ),
    "end layer": KernelCall(
        lambda: {
            "x": torch.randn(3, 8),
            "attended": torch.randn(3, 6),
            "output": torch.randn(8, 6),
            "post_norm": torch.randn(8),
            "gate_up": torch.randn(20, 8),
            "down": torch.randn(8, 10),
            "next_norm": torch.randn(8),
            "eps": 1e-2,
        },
        lambda workers, x, attended, **by: RowKernels(workers).end_layer(x, attended, LayerEnd(**by)),
        lambda x, attended, **by: ended_layer(x.double(), attended.double(), LayerEnd(**by)),
    ),
    "swiglu": KernelCall(
        lambda: {"x": torch.randn(3, 2 * D)},
        lambda workers, x: RowKernels(workers).swiglu(x),
        lambda x: reference_rows.swiglu(x.double()),
    ),
    "top blocks": KernelCall(
        lambda: {
            "scores": torch.randn(B, H, G, N),
            "closed": ints(N + 1, B, dtype=torch.int64),
            "count": 2,
            "first": 1,
            "last": 1,
        },
        lambda workers, scores, closed, count, first, last: (
            NativeOps(workers).top_blocks(scores, closed, count, (first, last), largest=False).all_wishes
        ),
        lambda scores, closed, count, first, last: (
            reference.top_blocks(scores, closed, count, (first, last), largest=False).all_wishes
        ),
    ),
    "top by key codes": KernelCall(
        lambda: code_arguments() | {"basis": torch.eye(D).expand(B, H, D, D).contiguous(), "count": 2},
        lambda workers, **args: NativeOps(workers).top_by_key_codes(top_request(**args)).all_wishes,
        lambda **args: PLAIN.top_by_key_codes(top_request(**args)).all_wishes,
        code_rounding,
    ),
    "split choice": KernelCall(
        lambda: {
            "candidates": torch.rand(B, H, 7).argsort(-1)[..., :N].contiguous(),
            "picks": torch.rand(B, H, N).argsort(-1)[..., :3].contiguous(),
            "wishes": torch.rand(B, H, 3),
            "closed": ints(N + 1, B, dtype=torch.int64),
            "slot_of": ints(S + 1, B, H, 7, dtype=torch.int64),
            "asked": torch.rand(B) < 0.7,
            "all_of_it": torch.rand(B) < 0.3,
            "threshold": torch.rand(B),
        },
        lambda workers, **args: NativeOps(workers).split_choice(split_request(**args)),
        lambda **args: reference.split_choice(split_request(**args)),
    ),
    "near list": KernelCall(
        lambda: {
            "candidates": torch.rand(B, H, N).argsort(-1),
            "picks": torch.rand(B, H, N).argsort(-1)[..., :2].contiguous(),
            "closed": ints(N + 1, B, dtype=torch.int64),
            "entry": ints(S, B, dtype=torch.int64),
        },
        lambda workers, **args: NativeOps(workers).near_list(near_request(**args)),
        lambda **args: plain.near_list(near_request(**args), plain.page_list),
    ),
    "append": KernelCall(
        lambda: {"pool": torch.randn(S, H, P, D), "k": torch.randn(B, H, D), "fill": ints(P, B, dtype=torch.int64)},
        lambda workers, **args: appended(NativeOps(workers).append, **args),
        lambda **args: appended(plain.append, **args),
    ),
    "late": KernelCall(
        lambda: {
            "blocks": torch.rand(B, H, N).argsort(-1)[..., :3].contiguous(),
            "absent": torch.rand(B, H, 3) < 0.5,
            "wishes": torch.rand(B, H, 3),
            "scouted": torch.rand(B, H, N).argsort(-1)[..., :3].contiguous(),
            "served": torch.rand(B, H, 3) < 0.5,
            "scout_error": torch.rand(B, H),
            "rows": torch.rand(B) < 0.7,
            "limit": 0.5,
        },
        lambda workers, **args: NativeOps(workers).find_late(guard_request(**args)),
        lambda **args: reference.find_late(guard_request(**args)),
    ),
    "interest": KernelCall(
        lambda: {
            "interest": torch.rand(B, H, 7),
            "blocks": torch.rand(B, H, 7).argsort(-1)[..., :N].contiguous(),
            "wishes": torch.rand(B, H, N),
            "rows": torch.rand(B) < 0.7,
            "kept": 0.8,
        },
        lambda workers, **args: updated(NativeOps(workers).update_interest, **args),
        lambda **args: updated(reference.update_interest, **args),
    ),
    "merge": KernelCall(
        only("a_out a_lse b_out b_lse"),
        lambda workers, a_out, a_lse, b_out, b_lse: NativeOps(workers).merge(
            Partial(a_out, a_lse), Partial(b_out, b_lse)
        )[:2],
        lambda a_out, a_lse, b_out, b_lse: reference.merge(Partial(a_out, a_lse), Partial(b_out, b_lse))[:2],
    ),
    "corrected": KernelCall(
        only("a_lse q q_hat mean_key"),
        lambda workers, a_lse, q, q_hat, mean_key: (
            NativeOps(workers).corrected(Partial(mean_key, a_lse, mean_key), q, q_hat, 0.3).lse
        ),
        lambda a_lse, q, q_hat, mean_key: (
            reference.corrected(Partial(mean_key, a_lse, mean_key), q.float(), q_hat.float(), 0.3).lse
        ),
    ),
    "scout error": KernelCall(
        only("a_lse b_lse q q_hat"),
        lambda workers, a_lse, b_lse, q, q_hat: NativeOps(workers).scout_error(
            Partial(q, a_lse), Partial(q, b_lse), q, q_hat
        ),
        lambda a_lse, b_lse, q, q_hat: reference.scout_error(
            Partial(q, a_lse), Partial(q, b_lse), q.float(), q_hat.float()
        ),
    ),
}
