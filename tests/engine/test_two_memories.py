"""A device whose memory is not the host's, as far as that can be seen without one: PyTorch's `meta` device.

Its tensors have no numbers, so what the host reads is given, but an operation on tensors of both memories is refused.
"""

from dataclasses import fields, replace

import pytest
import torch

from scoutattention.attention import step
from scoutattention.attention.far import Pending
from scoutattention.attention.far_stream import StreamTransport
from scoutattention.cache import pages
from scoutattention.cache.prefix import NOTHING, Lineage, Prefix
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.engine import engine
from scoutattention.engine.engine import Engine
from scoutattention.errors import CapacityError
from scoutattention.kernels.plain import PlainOps
from scoutattention.models.decoder import Decoder, DecoderWeights
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.shapes.known import shape_config
from scoutattention.types import PageSelection, Partial

META = torch.device("meta")
CONTEXT, SIZE = 600, 16


def on_meta(value):
    return value.to(META) if isinstance(value, torch.Tensor) else value


def meta_decoder() -> Decoder:
    made = dummy_decoder(shape_config("tiny"), 1024, torch.device("cpu"))
    weights = made.weights
    layers = tuple(type(of)(**{f.name: on_meta(getattr(of, f.name)) for f in fields(of)}) for of in weights.layers)
    moved = {f.name: on_meta(getattr(weights, f.name)) for f in fields(weights)} | {"layers": layers}
    return Decoder(made.config, DecoderWeights(**moved))


class Buffers(Pending):
    """What goes through host memory is checked, and comes back without numbers."""

    def __init__(self, transport, q, what, with_mean_key):
        self.with_mean_key, self.ops = with_mean_key, transport._ops
        assert {q.device, *(table.device for table in transport._ops.page_list(what))} == {META}
        self.shape = q.shape

    def wait(self):
        out = torch.empty(self.shape, device=META)
        return Partial(out, torch.empty(self.shape[:3], device=META), out if self.with_mean_key else None)

    def wait_beside(self, near):
        return self.ops.partial(*near), self.wait()


@pytest.fixture
def make_engine(monkeypatch):
    """Engines whose device is `meta`."""
    monkeypatch.setattr(engine, "find_device", lambda *which: META)
    monkeypatch.setattr(engine, "free_memory", lambda where: 1 << 40)
    partial = PlainOps.partial

    def start(self, layer, kind, q, what, *, with_mean_key):
        return Buffers(self, q, what, with_mean_key)

    def split(self, layer, kind, what, call, *, with_mean_key):
        choice = self._ops.split_choice(what)
        selected = PageSelection(call.table, choice.blocks, choice.absent, call.size)
        return choice, None, Buffers(self, call.q, selected, with_mean_key)

    def in_place(self, q, k, *rest):
        """A device reads the host's pages where they are."""
        return partial(self, q, k, *rest) if k.device == META else fake_partial(q)

    monkeypatch.setattr(StreamTransport, "start", start)
    monkeypatch.setattr(StreamTransport, "split", split)
    monkeypatch.setattr(PlainOps, "partial", in_place)
    sizes = {"max_num_seqs": 2, "max_model_len": 1024, "host_memory": 1 << 28}
    engine_config = EngineConfig(device="cuda", kernels="plain", **sizes)
    engines = []

    def make(device_memory=None, **options) -> Engine:
        scout = ScoutConfig().changed(budget=128, block_size=SIZE, **options)
        engines.append(Engine(meta_decoder(), scout, replace(engine_config, device_memory=device_memory)))
        return engines[-1]

    yield make
    for made in engines:
        made.close()


def fake_partial(q):
    return Partial(torch.empty(q.shape, device=META), torch.empty(q.shape[:3], device=META))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"digest": "minmax", "pooling": "max", "lookahead": 2},
        {"guard": None, "far_query": "true"},
        {"predictor": "plain", "on_miss": "drop"},
    ],
    ids=str,
)
def test_nothing_is_computed_from_both_memories(make_engine, monkeypatch, options):
    made = make_engine(**options)
    attention, store = made.runner.attention, made.store
    parts = attention.parts
    ops = parts.ops
    for moves in ("write_blocks", "copy_blocks", "close_blocks"):  # the ones that are for both
        monkeypatch.setattr(ops, moves, lambda *args: None)
    recalled = []
    monkeypatch.setattr(ops, "recall", recalled.append)  # its plain twin reads numbers
    monkeypatch.setattr(pages, "copy_runs", lambda *args: None)
    trial = made.runner._prompt_attention._trial
    monkeypatch.setattr(trial, "cosines", lambda row, first, samples: torch.ones(len(samples)))
    monkeypatch.setattr(store.slots, "complete", lambda batch: [False, True])
    monkeypatch.setattr(store.exchange, "tell", lambda: None)  # a tensor without memory has nothing to tell
    states = [torch.zeros(state[:, 0].shape, dtype=state.dtype) for state in store._of_prompts]
    kept = Prefix(Lineage(states, 0), tuple(range(CONTEXT // SIZE // 2)))
    for row, prefix in enumerate((NOTHING, kept)):
        store.admit(row, made.plan.blocks(1024), made.plan.quota(2, 1024), prefix)
        assert made.runner.prefill(row, [1] * CONTEXT).device == META
    step = attention.prepare(range(2))
    attention.start(step)
    assert any(step.work.scouted)
    assert step.work.all_resident
    assert made.runner._run(step).device == META
    (what,) = recalled
    tensors = (*what.slots, *what.rows, what.due, what.table, *what.copies, what.recalled)
    assert {tensor.device for tensor in tensors} == {META}
    store.move(1, 0)


def test_a_mistake_would_be_seen(make_engine, monkeypatch):
    monkeypatch.setattr(step.StepMemory, "put", lambda self, masks: masks)  # which leaves them on the host
    with pytest.raises(RuntimeError, match="meta"):
        test_nothing_is_computed_from_both_memories(make_engine, monkeypatch, {})


@pytest.mark.parametrize("digest", ["two-stage", "keys2", "minmax"])
@pytest.mark.parametrize("wanted", [700_000, 1 << 20])
def test_the_cache_takes_the_device_memory_that_it_may(make_engine, digest, wanted):
    cache = make_engine(wanted, digest=digest).cache
    store = cache.store
    kinds = [vars(kind) for kind in cache.digests.kinds]
    held = [*kinds, *(vars(part) for part in (store, store.slots, store.slots.pool, store.pages))]
    tensors = [value for part in held for value in part.values() if isinstance(value, torch.Tensor)]
    taken = sum(tensor.nbytes for tensor in tensors if tensor.device == META)
    entry = store.slots.pool.entry_bytes  # there is one more, for the rows that pad a batch
    assert wanted * 0.98 - entry < taken - entry < wanted * 1.02


def test_what_does_not_fit_the_device_is_refused_before_it_is_taken(make_engine, monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda where: 1 << 20)
    with pytest.raises(CapacityError, match=r"slots of \d+ bytes, .* than the 1048576 bytes .* lower device_memory"):
        make_engine(3 << 19)
    with pytest.raises(CapacityError, match="below one block"):
        make_engine(1 << 16)
