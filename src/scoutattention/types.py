"""The axes legend and the values that layers, kernels and caches exchange.

Axes, in every comment and docstring of this project:

    B  sequences of a step            T  tokens of a prompt
    L  layers                         H  KV heads
    G  query heads per KV head        Q  query heads, Q = H * G, query head h * G + g belongs to KV head h
    D  head dim                       E  hidden size
    N  blocks of a list               S  slots or pages of a pool
    P  positions of a block, at most block_size
"""

from typing import NamedTuple

from torch import Tensor


class Partial(NamedTuple):
    """Attention over some keys, mergeable with attention over other keys.

    out: float32 [B, H, G, D], normalised over its own keys; zero where there are none.
    lse: float32 [B, H, G], natural logarithm of the sum of exp(score); -inf where there are no keys.
    mean_key: float32 [B, H, G, D] or None, the keys' mean under their own attention weights; zero where none.
    """

    out: Tensor
    lse: Tensor
    mean_key: Tensor | None = None


class BlockList(NamedTuple):
    """Which blocks of a pool to attend to, and how many tokens of each.

    index: int32 [B, H, N], pages or slots of a pool; any value where the length is 0. May be an expanded view.
    length: int32 [B, H, N], tokens to attend to in each; 0 skips the block.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which a list of blocks has no use for
    length: Tensor


class PageSelection(NamedTuple):
    """Closed blocks of sequences, to be looked up in the page table.

    table: int32 [B, NB], each block's page.   blocks: int64 [B, H, N].   wanted: bool [B, H, N], others are skipped.
    size: tokens of a block.
    """

    table: Tensor
    blocks: Tensor
    wanted: Tensor
    size: int


class CallFlags(NamedTuple):
    """The flags of one call from a device to the CPU. The call may be made any number of times.

    called, answered: int32 [1] in pinned host memory. The device writes the number of its last call to `called`, and
        the CPU the number of the last call that it has answered to `answered`.
    waited: int64 [1] in pinned host memory, nanoseconds that the device waited for the last call.
    counts: int32 [4] on the device: programs that have staged their part of the next call; calls so far; and the last
        call that near attention beside it has seen the end of (less than 0 where it was late), and has outlasted.
    late: int32 [1] in pinned host memory, shared by all calls: the line of a call that was late, or 0.
    gave_up: int32 [1] on the device, shared by all calls: 1 after a late call, when the device waits no more; else 0.
    line: the call's place in the table of flags, from 1.
    """

    called: Tensor
    answered: Tensor
    waited: Tensor
    counts: Tensor
    late: Tensor
    gave_up: Tensor
    line: int


class TopBlocks(NamedTuple):
    """The blocks that each KV head wants most.

    blocks: int64 [B, H, N], most wanted first.   wishes: float32 [B, H, N], of these blocks.
    all_wishes: float32 [B, H, NB], of every block.
    """

    blocks: Tensor
    wishes: Tensor
    all_wishes: Tensor


class SplitRequest(NamedTuple):
    """A choice to be split into absent and present blocks.

    candidates: int64 [B, H, C], blocks from which was chosen.
    picks: int64 [B, H, N], places of the chosen blocks among them, or None, where the first N are chosen.
    wishes: float32 [B, H, N], for the chosen blocks; the rows of N may lie apart.
    closed: int64 [B], blocks of each sequence.
    slots: the slot of each block, int64 [B, H, NB or more], and the number that means no slot.
    rows: bool [B], sequences whose choice counts; bool [B], which of them take all absent blocks; float32 [B], the wish
        that an absent block needs in the others, but for the `always` first.
    counts: int64 [2, B, H], to be filled with the numbers of attended and of absent blocks.
    """

    candidates: Tensor
    picks: Tensor | None
    wishes: Tensor
    closed: Tensor
    slots: tuple[Tensor, int]
    rows: tuple[Tensor, Tensor, Tensor]
    always: int
    counts: Tensor


class SplitChoice(NamedTuple):
    """A choice, split.

    blocks: int64 [B, H, N], the chosen ones.   attended, absent: bool [B, H, N], those to attend to, and those of them
    that have no slot.
    """

    blocks: Tensor
    attended: Tensor
    absent: Tensor


class GuardRequest(NamedTuple):
    """What decides whether a scout was good enough.

    wanted: blocks int64 [B, H, N] that the true query wants, which of them are absent, bool [B, H, N], and its wishes
        for them, float32 [B, H, N].   scouted: blocks int64 [B, H, N] of the scout, and which were attended to.
    scout_error: float32 [B, H], see `reference.scout_error`.   rows: bool [B], the sequences that have a scout.
    limit: of the scout error, and of the wishes for missed blocks.
    counts: int64 [2, B, H], to be filled: 1 where a head is spoilt or has late blocks, and the number of late blocks.
    """

    wanted: tuple[Tensor, Tensor, Tensor]
    scouted: tuple[Tensor, Tensor]
    scout_error: Tensor
    rows: Tensor
    limit: float
    counts: Tensor


class GuardFinding(NamedTuple):
    """What a scout spoilt or missed.

    spoilt: bool [B, H], heads whose far partial is not to be used.
    late: bool [B, H, N], wanted blocks that are yet to be attended to.
    """

    spoilt: Tensor
    late: Tensor


class Copies(NamedTuple):
    """Single heads of blocks to be copied from pages to entries of another pool; int64 [M] each.

    A page of -1 is none: the list has a hole there.
    """

    layer: Tensor
    page: Tensor
    entry: Tensor
    head: Tensor


class SlotTables(NamedTuple):
    """What is in the slots of all layers and rows.

    content: int64 [L, R, H, S], the block in each slot, -1 where none.
    slot_of: int64 [L, R, H, NB], the inverse: the slot of each block, S where it is absent.
    interest: float32 [L, R, H, NB], how much each block was wished for lately.
    near_length: int32 [L, R, H, 1 + S], tokens in each slot, behind those of the open block.
    near_index: int32 [R, 1 + S], entries of the slots' pool, behind that of the open block.
    quota: int64 [R], slots that a row has; the others are not its own.
    """

    content: Tensor
    slot_of: Tensor
    interest: Tensor
    near_length: Tensor
    near_index: Tensor
    quota: Tensor


class StepRows(NamedTuple):
    """The sequences of a step: their rows in tables, closed blocks, and tokens in the open block before the step.

    int64 [B] each. The open block is full with the step's token where `fill` is one less than a block's size.
    """

    row: Tensor
    closed: Tensor
    fill: Tensor


class CloseRequest(NamedTuple):
    """Open blocks to be copied to their pages where they are full.

    rows: of the sequences.   entry: int64 [B], of the open blocks.   table: int32 [R, NB], each block's page.
    """

    rows: StepRows
    entry: Tensor
    table: Tensor


class ShareCounts(NamedTuple):
    """What a step's layers counted, to be summed.

    counts: int64 [3, L, 2, B, H]. First, of scouts' choices: all blocks, and absent blocks. Then the same of true
        queries' choices. Last, of the guard: heads in which it found anything, and late blocks.
    true_query, all_resident: bool [L, B] and [1, B], see `attention.step.Masks`.
    guarded: whether there is a guard, so that recall goes by true queries alone.
    totals: int64 [3], to which all blocks, absent blocks and guarded heads are added.
    """

    counts: Tensor
    true_query: Tensor
    all_resident: Tensor
    guarded: bool
    totals: Tensor


class SharePolicy(NamedTuple):
    """How often layers recall, and what CPU share sequences are held to.

    target, interval: see `Ablation.recall_target` and `recall_interval`.
    limit: the CPU share limit, or None.   lowest, highest: wish threshold.
    """

    target: float | None
    interval: int
    limit: float | None
    lowest: float
    highest: float


class ShareRequest(NamedTuple):
    """A step's counts, to be taken into what is kept of its sequences.

    shares: int64 [2, L + 1, B], all blocks, and absent blocks. The first L are of each layer, for recall. The last is
        of all layers together, for the wish threshold.
    rows: int64 [B].   progress: float32 [L, R], of layers to their next recall.   threshold: float32 [R], of wishes.
    recalls: int64 [], to which the layers that are due are added.
    """

    shares: Tensor
    rows: Tensor
    progress: Tensor
    threshold: Tensor
    policy: SharePolicy
    recalls: Tensor


class RecallRequest(NamedTuple):
    """Layers and sequences in which slots are given to blocks.

    rows: of the sequences.   due: bool [L, B], where recall is due.   always: sink and recent blocks, which stay.
    table: int32 [R, NB], each block's page.   copies: page and entry, int64 [L, R, H, 1 + most] each, to be filled: a
        block just closed first, then at most `most` that recall brings; pages of -1 where none.
    recalled: int64 [], to which the blocks that recall brings are added.   size: tokens of a block.
    """

    slots: SlotTables
    rows: StepRows
    due: Tensor
    always: tuple[int, int]
    table: Tensor
    copies: tuple[Tensor, Tensor]
    recalled: Tensor
    size: int


class WantedRequest(NamedTuple):
    """Chosen blocks of a layer, of which the absent ones are given slots.

    layer: its number.   rows: of the sequences.   blocks: int64 [B, H, N], most wanted first.
    absent: bool [B, H, N]; the other blocks are present, and stay.   always, table, size: see `RecallRequest`.
    fetched: int64 [], to which the blocks that got slots are added.
    """

    slots: SlotTables
    layer: int
    rows: StepRows
    blocks: Tensor
    absent: Tensor
    always: tuple[int, int]
    table: Tensor
    fetched: Tensor
    size: int


Pools = tuple[Tensor, Tensor]
"""Keys and values of one layer of a pool, [S, H, P, D] each."""


class Rope(NamedTuple):
    """Rotary tables of the positions of a step: cos and sin, float32 [T, D] each."""

    cos: Tensor
    sin: Tensor
