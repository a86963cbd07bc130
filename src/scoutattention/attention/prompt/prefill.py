"""A prompt's attention: exact, layer by layer over the whole prompt; only one layer's keys stand beside the cache."""

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...cache.digests.stages import Stages
from ...cache.store import KVStore
from ...config import ScoutConfig
from ...kernels.reference_recall import Moves
from ...types import Rope
from ..recall import first_residents
from ..step import Attend
from .trial import ScoutTrial, TrialSample, sample_positions

logger = logging.getLogger(__name__)

VOTERS = 32
"""Last prompt positions whose attention decides which blocks get the first slots."""


class PromptLayer(NamedTuple):
    """What decoding needs to know of one layer of a prompt.

    voters: [W, H, G, D], the last positions' queries, which choose the first residents.   k, v: [T, H, D].
    sample: what scouts are tried on.
    """

    voters: Tensor
    k: Tensor
    v: Tensor
    sample: TrialSample


class PromptAttention:
    """Causal attention of one prompt, whose keys and values go to the store as each layer has made them."""

    def __init__(
        self,
        config: ScoutConfig,
        store: KVStore,
        digests: Stages,
        scale: float,
        trial: ScoutTrial,
        trusted: Tensor,
    ) -> None:
        """`trusted`: bool [L, R], filled in: whether scouts of a layer are good enough for the sequence in a row."""
        self._config = config
        self._store = store
        self._digests = digests
        self._scale = scale
        self._trial = trial
        self._trusted = trusted

    def known(self, row: int) -> int:
        """Tokens of a row's prompt that need not be read."""
        return self._store.closed[row] * self._store.block_size

    def begin(self, row: int, rope: Rope, record: list[PromptLayer] | None = None) -> Attend:
        """Start a prompt whose positions have these rotary tables, for a row that was admitted.

        Where the row has closed blocks, the prompt goes on behind them: their reading has decided what is decided once.
        record: gets what was placed, layer by layer, of a prompt that is read whole.
        """
        tried = sample_positions(rope.cos.shape[0])
        tried_rope = Rope(rope.cos[tried], rope.sin[tried])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
            if self._store.closed[row]:
                return self._go_on(row, layer, q, k, v)
            prompt = PromptLayer(q[-VOTERS:].clone(), k, v, TrialSample(x[tried], q[tried], tried_rope))
            self.place(row, layer, prompt)
            if record is not None:
                record.append(prompt)
            return causal(q, k, v, self._scale)

        return attend

    def _go_on(self, row: int, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One layer of a prompt behind blocks that are kept."""
        all_k, all_v = (torch.cat(parts) for parts in zip(self._store.read_prefix(layer, row), (k, v), strict=True))
        self._store.write_prompt(layer, row, k, v)
        self._choose_residents(row, layer, q[-VOTERS:].clone(), all_k)
        return causal(q, all_k, all_v, self._scale)

    def place(self, row: int, layer: int, prompt: PromptLayer) -> None:
        """Store one layer's keys and values; where blocks may be absent, fill the slots and try the scouts."""
        self._digests.fit(layer, row, prompt.sample.q, prompt.k)
        self._store.write_prompt(layer, row, prompt.k, prompt.v)
        self._choose_residents(row, layer, prompt.voters, prompt.k)
        if self._store.resident:
            return
        cosine = self._trial.cosine(row, layer, prompt.sample)
        if math.isnan(cosine):
            logger.warning(
                "layer %d: the prompt's inputs are not finite; this sequence uses the true query there", layer
            )
        if self._config.ablation.true_query_layers is None:
            self._trusted[layer, row] = cosine >= self._config.ablation.min_scout_cosine

    def _choose_residents(self, row: int, layer: int, voters: Tensor, k: Tensor) -> None:
        """Where blocks may be absent, fill the slots, behind the pages that are read for it."""
        if not self._store.resident:
            with self._store.side.after(voters, k):
                self._fill_slots(row, layer, voters, k)

    def finish(self, row: int, num_tokens: int) -> None:
        """Declare every layer of a prompt done."""
        self._store.finish_prompt(row, num_tokens)

    def _fill_slots(self, row: int, layer: int, q: Tensor, k: Tensor) -> None:
        """Give slots to the blocks that the prompt's last queries q [<= VOTERS, H, G, D] attended to most."""
        slots, size = self._store.slots, self._store.block_size
        transfers = self._store.transfers
        assert slots is not None
        assert transfers is not None
        mass = block_mass(q, k, size, self._scale)
        slots.interest[layer, row, :, : mass.shape[1]] = mass / (q.shape[0] * q.shape[2])
        blocks = first_residents(mass, slots.quota[row], self._config.sink_blocks, self._config.recent_blocks)
        heads, count = blocks.shape
        head = torch.arange(heads, device=blocks.device).repeat_interleave(count)
        slot = torch.arange(count, device=blocks.device).repeat(heads)
        moves = Moves(torch.full_like(head, row), head, slot, blocks.flatten())
        transfers.copy_now(layer, moves)


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention.   q: [N, H, G, D], the last N of T positions.   k, v: [T, H, D].   Returns [N, H, G, D].

    A group's query heads read the same keys and values, and not copies of them. What knows of groups on a GPU are its
    kernels for 16 bits; asked for them in float32, PyTorch would make all T x T scores.
    """
    attend = causal_by_group if k.is_cuda and k.dtype.itemsize == 2 else causal_by_head
    return attend(q.to(k.dtype), k, v, scale)


def causal_by_group(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`causal` as one sequence of H * G query heads and H KV heads."""
    queries, keys, values = (t.transpose(0, 1)[None] for t in (q.flatten(1, 2), k, v))
    out = scaled_dot_product_attention(queries, keys, values, **_mask(q, k), scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).contiguous().view(q.shape)


def causal_by_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`causal` as H sequences of G heads, whose keys and values are in one place."""
    keys, values = (t.transpose(0, 1)[:, None].expand(-1, q.shape[2], -1, -1) for t in (k, v))
    out = scaled_dot_product_attention(q.permute(1, 2, 0, 3), keys, values, **_mask(q, k), scale=scale)
    return out.permute(2, 0, 1, 3).contiguous()


def _mask(q: Tensor, k: Tensor) -> dict[str, Any]:
    """What tells PyTorch which keys come after a query."""
    new, every = q.shape[0], k.shape[0]
    if new == every:
        return {"is_causal": True}
    return {"attn_mask": torch.ones(new, every, dtype=torch.bool, device=q.device).tril(every - new)}


def block_mass(q: Tensor, k: Tensor, block_size: int, scale: float) -> Tensor:
    """Attention that a prompt's last queries gave to each of its full blocks.

    q: [W, H, G, D], the last W positions.   k: [T, H, D].   Returns float32 [H, T // block_size].
    """
    T, W = k.shape[0], q.shape[0]
    future = torch.arange(T, device=k.device) > torch.arange(T - W, T, device=k.device)[:, None]
    full = T // block_size
    mass = []
    for head in range(k.shape[1]):  # one by one: the scores of all of them are as large as the keys
        scores = q[:, head].float().transpose(0, 1) @ k[:, head].float().T * scale  # [G, W, T]
        weights = scores.masked_fill(future, -torch.inf).softmax(-1).sum((0, 1))
        mass.append(weights[: full * block_size].reshape(full, block_size).sum(-1))
    return torch.stack(mass)
