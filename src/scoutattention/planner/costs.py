"""What the stages of a decode step take: bytes and operations of a shape, by what a processor reaches of its peaks.

Each constant is measured once, where its comment says. docs/planning.md says which checks do not depend on them.
"One H100" is docs/lab/2026-11-26-gpu-step-rewritten.md: an H100 80GB HBM3 with 3,350 GB/s and 16 host cores, a shape of
Qwen3-8B in bfloat16. Its traced kernels are those of full attention and of `scout-plain` at 8k tokens and batch 4, and
at 32k and batch 8.
"""

from ..cache.memory_plan import correction_dims
from .computers import Card, Computer
from .cpu_costs import on_cpu
from .work import (
    Costs,
    Design,
    LayerCosts,
    Work,
    layer_bytes,
    matrix_parts,
    near_tokens,
    page_part,
    read_rate,
    scan_bytes,
)

# A GPU.
PRODUCTS = 0.775  # of memory bandwidth: one H100, 15.1 GB of weights in 5.84 ms
PRODUCT_FLOPS = 0.6  # of the peak, where products are bound by computing: an assumption
ATTENTION = 0.90  # of memory bandwidth: one H100, full attention, from the difference of its two cases
PARTIAL_S = 5.4e-6  # of a call of attention, beside its bytes: the same two cases
SCORES = 0.53  # of memory bandwidth: one H100, the scan at 32k and batch 8 less that at 8k and batch 4
SCORES_S = 7.5e-6  # of a call of scores, beside its bytes: the same two cases
CHOICE_S, CHOICE_BLOCK_S = 3.6e-6, 1.75e-10  # of a layer's choices, and of each block and KV head: the same
KERNEL_S = 1.4e-6  # of starting a kernel, a tiny one included: one H200, what the above leaves of full attention
BRANCH_S = 36e-6  # a layer's part of the gaps that work for the CPU brings: one H100, scout's idle time less full's
KERNELS_BEFORE, KERNELS_NEAR, KERNELS_AFTER, KERNELS_AHEAD, KERNELS_JUDGE, KERNELS_CORRECT = 6, 2, 7, 6, 5, 2  # a layer
LINK = 0.66  # of the link's peak: one H100, recall's copies of 26 MB in 0.605 ms
LATE = 0.02  # of the chosen blocks, that a scout missed and the device reads over the link: one H100, its kernel
MOVED = 0.022  # of the chosen blocks, that recall moves in a step: one H100, bytes over the link
FETCH_S = 30e-6  # between a choice and its copies, where nothing is ahead: an assumption

# The host of a GPU.
SCATTERED = 0.56  # of what threads read, in blocks of 8 KiB: one H100's host, 44 of 78 GB/s
FAR_CALL_S = 150e-6  # from a flag to its answer, beside the bytes: one H100, hidden and waited time of its two cases


def costs_of(design: Design, work: Work, computer: Computer) -> Costs:
    """What a step of a design costs on a computer."""
    return on_cpu(design, work, computer) if computer.card is None else _on_gpu(design, work, computer)


def _on_gpu(design: Design, work: Work, computer: Computer) -> Costs:
    card, shape, scout = computer.card, work.shape, work.scout
    assert card is not None
    before, after, head = matrix_parts(shape)
    near = layer_bytes(work, near_tokens(design, work)) / (ATTENTION * card.bandwidth) + PARTIAL_S
    near += KERNELS_NEAR * KERNEL_S
    own = _products(before, work, card) + KERNELS_BEFORE * KERNEL_S
    rest = _products(after, work, card) + KERNELS_AFTER * KERNEL_S
    last = _products(head, work, card)
    if design == "full":
        return Costs(LayerCosts(own, 0, 0, near, 0, rest, 0, 0, 0, 0), last)
    scan, candidates = scan_bytes(work)
    blocks = work.batch * work.context / scout.block_size * shape.num_kv_heads
    choice = CHOICE_S + CHOICE_BLOCK_S * blocks
    scores = [SCORES_S + size / (SCORES * card.bandwidth) for size in (scan, candidates)]
    query = _products(shape.hidden_size * shape.num_query_heads * shape.head_dim, work, card)
    fixes = work.batch * 2 * shape.hidden_size * correction_dims(shape, scout) * shape.dtype_bytes
    corrected = fixes / (PRODUCTS * card.bandwidth) + KERNELS_CORRECT * KERNEL_S
    predicts = design != "compute"
    chosen = layer_bytes(work, min(work.context, (scout.budget_blocks or 0) * scout.block_size))
    moved = chosen * page_part(work) * work.has_absent
    link, reads = LINK * card.link, SCATTERED * read_rate(computer.host)
    return Costs(
        LayerCosts(
            before=own + BRANCH_S / 2,
            ahead=KERNELS_AHEAD * KERNEL_S + scores[0] + choice * 2 / 3 + (query + corrected if predicts else 0.0),
            judge=KERNELS_JUDGE * KERNEL_S + scores[1] + choice / 3,
            near=near,
            late=LATE * moved / link if design == "scout" else 0.0,
            after=rest + BRANCH_S / 2,
            far_call=FAR_CALL_S,
            far=moved / reads,
            fetch=moved / link,
            recall=0.0 if design == "fetch-ahead" else MOVED * moved / link,
        ),
        last,
    )


def _products(numbers: int, work: Work, card: Card) -> float:
    """Seconds of products with so many weights: bound by reading them, or, with many sequences, by computing."""
    read = numbers * work.shape.dtype_bytes / (PRODUCTS * card.bandwidth)
    return max(read, 2 * numbers * work.batch / (PRODUCT_FLOPS * card.flops))
