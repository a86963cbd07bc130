"""The native kernels: partial attention and digest scores on the CPU, and the queue that runs them.

Same results as their twins in `reference`. Every argument is checked here, before the native side sees an address.
"""

from types import TracebackType

import torch
from torch import Tensor

from ..errors import ConfigError, KernelError
from ..machine import usable_cores
from ..types import BlockList, Partial

try:
    from .. import _native
except ImportError as error:
    raise KernelError(f"the native extension is not built ({error}): build it with `pip install .`") from error

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def isa_levels() -> tuple[str, ...]:
    """Instruction sets that this CPU and this build support, worst to best."""
    return tuple(_native.isa_levels())


class Job:
    """One submitted partial. Keeps its tensors alive; dropping it unfinished waits for it."""

    def __init__(self, handle: _native.Handle, result: Partial) -> None:
        self._handle = handle
        self._result = result
        self._waited = False

    def wait(self) -> Partial:
        """The result. Blocks until it is there, without the GIL, and helps with tasks that nobody has started."""
        if not self._waited:
            self._handle.wait()
            self._waited = True
        return self._result

    @property
    def ran_s(self) -> float:
        """Seconds from the start of the first task to the end of the last; valid after `wait`."""
        return self._handle.ran_s

    @property
    def started_s(self) -> float:
        """When the first task started, on the clock of `time.perf_counter`; valid after `wait`."""
        return self._handle.started_s

    @property
    def waited_s(self) -> float:
        """Seconds that `wait` took; valid after `wait`."""
        return self._handle.waited_s


class Workers:
    """Native threads that work through submitted jobs in order, and sleep when there are none.

    threads: how many; None is one per usable core.   isa: one of `isa_levels()`, or "auto" for the best.
    delay_s: seconds that every job begins by sleeping: for tests of overlap.
    Raises ConfigError where there are fewer cores than threads, KernelError where `isa` is not supported.
    """

    def __init__(self, threads: int | None = None, *, isa: str = "auto", delay_s: float = 0.0) -> None:
        cores = usable_cores()
        self.threads = cores if threads is None else threads
        if not 1 <= self.threads <= cores:
            raise ConfigError(f"workers={threads} is outside 1..{cores}, the cores this process may use")
        if not 0 <= delay_s < float("inf"):
            raise ConfigError(f"delay_s={delay_s} is not a number of seconds")
        self._native = _native.Workers(self.threads, isa, delay_s)
        self.isa = self._native.isa

    @property
    def native(self) -> _native.Workers:
        """The extension's object, for the other files of this folder."""
        return self._native

    def submit(
        self, q: Tensor, k: Tensor, v: Tensor, blocks: BlockList, scale: float, *, with_mean_key: bool = False
    ) -> Job:
        """Start attention of every query to the listed blocks of a pool, and return at once.

        q: [B, H, G, D], any float dtype.   k, v: one layer of a pool, [S, H, P, D], float32, bfloat16 or float16,
        contiguous in the last two axes; they must not change until the job is done.
        Raises KernelError where a tensor does not fit, or a listed index or length is out of range.
        """
        return self._start(q, k, v, blocks, scale, with_mean_key=with_mean_key, helped=False)

    def partial(
        self, q: Tensor, k: Tensor, v: Tensor, blocks: BlockList, scale: float, *, with_mean_key: bool = False
    ) -> Partial:
        """Attention of every query to the listed blocks of a pool: `submit`, then `wait`."""
        return self._start(q, k, v, blocks, scale, with_mean_key=with_mean_key, helped=True).wait()

    def _start(
        self, q: Tensor, k: Tensor, v: Tensor, blocks: BlockList, scale: float, *, with_mean_key: bool, helped: bool
    ) -> Job:
        """Submit; `helped` says that the caller waits at once, so that one thread fewer need wake."""
        q = q.to(torch.float32).contiguous()
        _check_pool(q, k, v)
        B, H, G, D = q.shape
        index, length = blocks
        _check_table("blocks.index", index, (B, H))
        _check_table("blocks.length", length, (B, H, index.shape[2]))
        out, lse = torch.empty_like(q), q.new_empty(B, H, G)
        mean_key = torch.empty_like(q) if with_mean_key else None
        result = Partial(out, lse, mean_key)
        pointers = (
            *(tensor.data_ptr() for tensor in (q, k, v, index, length, out, lse)),
            0 if mean_key is None else mean_key.data_ptr(),
        )
        sizes = (B, H, G, D, index.shape[2], k.shape[0], k.shape[2], DTYPES[k.dtype])
        strides = (*k.stride()[:2], *v.stride()[:2], *index.stride()[:2], *length.stride()[:2])
        return Job(self._native.partial(pointers, sizes, strides, scale, helped, (q, k, v, result)), result)

    def score_digests(self, q: Tensor, digests: Tensor, pages: Tensor) -> Tensor:
        """Upper bound of q . k over the keys of each block: float32 [B, H, G, N].

        q: [B, H, G, D].   digests: one layer, float32 [S, H, 2 * D].   pages: int32 [B, N].
        Raises KernelError where a tensor does not fit, or a page is out of range.
        """
        q = q.to(torch.float32).contiguous()
        _check_scored(q, pages)
        B, H, G, D = q.shape
        _check_layer("digests", digests, torch.float32, (H, 2 * D))
        N = pages.shape[1]
        out = q.new_empty(B, H, G, N)
        pointers = tuple(tensor.data_ptr() for tensor in (q, digests, pages, out))
        strides = (*digests.stride()[:2], pages.stride(0))
        self._native.scores(pointers, (B, H, G, D, N, digests.shape[0]), strides)
        return out

    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> Tensor:
        """Log-sum-exp of q . k over each block's keys, the keys as `reference.key_codes` kept them: [B, H, G, N].

        q: [B, H, G, D], scaled; its products with a block's steps are rounded to 8 bits.
        codes, bounds: one layer, uint8 [S, H, W, P, 4] and float16 [S, H, 2, D].   pages: int32 [B, N].
        Raises KernelError where a tensor does not fit, or a page is out of range.
        """
        q = q.to(torch.float32).contiguous()
        _check_scored(q, pages)
        B, H, G, D = q.shape
        N, P = pages.shape[1], codes.shape[3] if codes.dim() == 5 else 0
        _check_layer("codes", codes, torch.uint8, (H, (D + 15) // 16, max(1, P), 4))
        _check_layer("bounds", bounds, torch.float16, (H, 2, D))
        if bounds.shape[0] != codes.shape[0]:
            raise KernelError(
                f"codes have {codes.shape[0]} pages and bounds {bounds.shape[0]}: they must have the same"
            )
        out = q.new_empty(B, H, G, N)
        pointers = tuple(tensor.data_ptr() for tensor in (q, codes, bounds, pages, out))
        strides = (*codes.stride()[:2], *bounds.stride()[:2], pages.stride(0))
        self._native.code_scores(pointers, (B, H, G, D, N, codes.shape[0], P), strides)
        return out

    def read(self, data: Tensor) -> int:
        """Sum of the 64-bit words of `data`, modulo 2**64: for timing how fast these threads can read memory.

        data: contiguous, on the CPU, a multiple of 256 bytes.   Raises KernelError where it is not.
        """
        if not data.is_cpu or not data.is_contiguous():
            raise KernelError(f"data has strides {data.stride()} on {data.device}: it must be contiguous on the CPU")
        return self._native.read(data.data_ptr(), data.nbytes)

    def close(self) -> None:
        """Finish what was submitted and end the threads. A second call does nothing."""
        self._native.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_pool(q: Tensor, k: Tensor, v: Tensor) -> None:
    if k.dtype not in DTYPES or v.dtype != k.dtype:
        raise KernelError(f"k is {k.dtype} and v is {v.dtype}: both must be float32, bfloat16 or float16 alike")
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise KernelError(
            f"q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}: they must be [B, H, G, D], [S, H, P, D] "
            "and [S, H, P, D] with the same H and D"
        )
    if not (q.is_cpu and k.is_cpu and v.is_cpu):
        raise KernelError(f"q is on {q.device}, k on {k.device} and v on {v.device}: all must be on the CPU")
    if q.shape[2] < 1 or q.shape[3] < 1:
        raise KernelError(f"q is {list(q.shape)}: G and D must be at least 1")
    row = (q.shape[3], 1)
    if k.stride()[2:] != row or v.stride()[2:] != row:
        raise KernelError(
            f"k has strides {k.stride()} and v {v.stride()}: the last two must be {row}, that is, contiguous"
        )


def _check_table(name: str, table: Tensor, shape: tuple[int, ...]) -> None:
    if table.dtype != torch.int32 or not table.is_cpu:
        raise KernelError(f"{name} is {table.dtype} on {table.device}: it must be int32 on the CPU")
    if table.dim() != 3 or table.shape[: len(shape)] != shape:
        raise KernelError(f"{name} is {list(table.shape)}: it must be [B, H, N], beginning with {list(shape)}")
    if table.shape[2] > 1 and table.stride(2) != 1:
        raise KernelError(f"{name} has strides {table.stride()}: the last must be 1")


def _check_scored(q: Tensor, pages: Tensor) -> None:
    if not q.is_cpu or q.dim() != 4 or q.shape[2] < 1 or q.shape[3] < 1:
        raise KernelError(f"q is {list(q.shape)} on {q.device}: it must be [B, H, G, D], no G or D of 0, on the CPU")
    if pages.dtype != torch.int32 or not pages.is_cpu:
        raise KernelError(f"pages is {pages.dtype} on {pages.device}: it must be int32 on the CPU")
    if pages.dim() != 2 or pages.shape[0] != q.shape[0]:
        raise KernelError(f"pages is {list(pages.shape)}: it must be [B, N] with B = {q.shape[0]}")
    if pages.shape[1] > 1 and pages.stride(1) != 1:
        raise KernelError(f"pages has strides {pages.stride()}: the last must be 1")


def _check_layer(name: str, layer: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is not [S, *shape], or not contiguous in what one head of one page keeps."""
    if layer.dtype != dtype or not layer.is_cpu:
        raise KernelError(f"{name} is {layer.dtype} on {layer.device}: it must be {dtype} on the CPU")
    if layer.shape[1:] != shape:
        raise KernelError(f"{name} is {list(layer.shape)}: it must be [S, {', '.join(map(str, shape))}]")
    if layer.numel() and not layer[0, 0].is_contiguous():
        raise KernelError(f"{name} has strides {layer.stride()}: all but the first two axes must be contiguous")
