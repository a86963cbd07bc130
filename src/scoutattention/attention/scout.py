"""A decode step of ScoutAttention (arXiv 2603.27138): the device attends to what it holds, the CPU to the rest."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from ..config import ScoutConfig
from ..types import Rope
from .predict import source_layers
from .scout_layers import Parts, ScoutLayers
from .scout_step import ScoutStep, StepMemory, Work, sort_sequences
from .step import Attend, Attention, StepStats


class ScoutAttention(Attention[ScoutStep]):
    """Decode attention over a store with slots.

    parts: what the method is made of.   trusted: bool [L, R], the layers and rows whose scouts are used.
    """

    def __init__(self, config: ScoutConfig, parts: Parts, trusted: torch.Tensor) -> None:
        """`trusted`: on the host; prompts fill it in, see `PromptAttention`."""
        store = parts.store
        layers = store.num_layers
        self.parts = parts
        self._config = config
        self.trusted = trusted
        sources = source_layers(config, layers)
        self._has_scouts = torch.tensor([source != layer for layer, source in enumerate(sources)])
        self._targets = [[t for t in range(layers) if sources[t] == layer != t] for layer in range(layers)]
        self._memory = StepMemory(layers, store.num_rows, store.heads, store.device)

    @override
    def prepare(self, rows: Sequence[int]) -> ScoutStep:
        parts, fetches = self.parts, self._config.ablation.on_miss == "fetch"
        batch = parts.store.prepare(rows)
        if fetches:
            parts.store.side.join()  # layers will move blocks themselves
        parts.far.transport.reset()
        parts.chooser.prepare(batch)
        slots, budget = parts.store.slots, self._config.budget_blocks
        assert slots is not None
        # Asked of all ranks: a graph with their sums is one that all of them capture and replay, in the same steps.
        has_absent = parts.store.ranks.sum((~slots.complete(batch)).long()) > 0
        counts = torch.tensor(batch.counts)
        within_budget = torch.ones(batch.size, dtype=torch.bool) if budget is None else counts <= budget
        trusted = self.trusted[:, list(batch.numbers)] & self._has_scouts[:, None]
        masks = sort_sequences(has_absent, within_budget, trusted, guarded=parts.guard is not None)
        scouted, true_query, asked = (
            tuple(of.any(1).tolist()) for of in (masks.scouted, masks.true_query, masks.asked)
        )
        some_resident = bool(masks.all_resident.any())
        work = Work(
            *(batch.size, batch.consecutive, batch.width, batch.near), scouted, true_query, asked, some_resident
        )
        tally = self._memory.tally(batch.size)
        return ScoutStep(batch, None if fetches else work, work, self._memory.put(masks), tally)

    @override
    def begin(self, step: ScoutStep, rope: Rope) -> Attend:
        self._memory.clear()
        self.parts.store.begin(step.batch)
        return ScoutLayers(self._config.ablation, self.parts, self._targets, step, rope)

    @override
    def end(self, step: ScoutStep) -> StepStats:
        parts, batch, (scouted, asked, guarded) = self.parts, step.batch, step.tally
        transfers = parts.store.transfers
        assert transfers is not None
        served = (step.masks.true_query | step.masks.all_resident)[:, None, :, None]
        late = guarded[:, 1].sum((0, 2))
        chosen, far = (scouted + asked * served).sum((0, 3)) + late  # int64 [B] each
        totals = torch.stack((chosen.sum(), far.sum(), guarded[:, 0].sum())).tolist()  # there when the work is done
        times = parts.far.transport.times()
        parts.recall.give_slots(parts.store.end(batch))
        recalls, recalled_bytes = 0, sum(step.fetched)
        if self._config.ablation.on_miss != "fetch":
            seen = asked if parts.guard is not None else asked + scouted
            recalls, recalled_bytes = parts.recall.recall(batch, seen.sum(-1))
        transfers.start_copies()
        parts.limit.update(batch, far, chosen)
        chosen_blocks, far_blocks, guarded = totals
        return StepStats(chosen_blocks, far_blocks, guarded, times.hidden_s, times.waited_s, recalls, recalled_bytes)
