"""What a prompt takes of a device beside the pools, and what it queues, by the tensors that reading one makes.

They are on PyTorch's `meta` device, which has sizes and no numbers: so models and prompts are as large as real ones.
"""

import gc
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoutattention.attention import build
from scoutattention.attention.prompt import prefill, trial
from scoutattention.cache import work_memory
from scoutattention.cache.memory_plan import MemoryPlan, work_bytes
from scoutattention.cache.work_memory import LIBRARIES
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.engine import runner, sampler
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.reference import in_basis
from scoutattention.kernels.reference_factors import Factors
from scoutattention.models.decoder import Decoder, DecoderWeights
from scoutattention.models.formats.dummy import dummy_config
from scoutattention.models.layers import LayerWeights
from scoutattention.models.shapes.known import shape_config

META = torch.device("meta")


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=META)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that lived at once, of those that are made inside, and the operations, on each stream.

    PyTorch keeps memory for each of them by itself, so that their sum is what a device needs.
    """

    def __init__(self) -> None:
        super().__init__()
        seen = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.device == META]
        self._before = {StorageWeakRef(one.untyped_storage()) for one in seen}
        self._known: dict[StorageWeakRef, tuple[str, int]] = {}
        self._live = {"main": 0, "side": 0}
        self._held: list[torch.Tensor] = []
        self._stream = "main"
        self.bytes = dict(self._live)
        self.queued = dict.fromkeys(self._live, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for gone in [ref for ref in self._known if ref.expired()]:
            stream, size = self._known.pop(gone)
            self._live[stream] -= size
        with self:  # what an operation is made of, with the copies that it makes
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        self.queued[self._stream] += not func.is_view and "empty" not in func.name()
        for one in tree_leaves(out):
            if not isinstance(one, torch.Tensor) or one.device != META:
                continue
            storage = one.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref not in self._known and ref not in self._before:
                self._known[ref] = self._stream, storage.nbytes()
                self._live[self._stream] += storage.nbytes()
        self.bytes = {stream: max(self.bytes[stream], live) for stream, live in self._live.items()}
        return out

    @contextmanager
    def after(self, *tensors):
        """As of a `SideStream`, which keeps tensors until it is waited for."""
        self._held += tensors
        self._stream = "side"
        try:
            yield
        finally:
            self._stream = "main"

    def join(self):
        self._held.clear()


def made(*like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors that one kernel makes, of the same sizes."""
    return torch.zeros_like(like[0]), *(torch.empty_like(one) for one in like[1:])


def queue(kernels: int) -> None:
    """Queue kernels that make nothing."""
    for _ in range(kernels):
        torch.zeros(1, device=META)


class DeviceOps(PlainOps):
    """Operations that make the tensors that those of a GPU make, queue as many kernels, and compute nothing."""

    def causal(self, q, k, v, scale):
        return torch.empty_like(q)

    def write_key_codes(self, what):
        for _ in in_basis(what):
            queue(1)

    def write_min_max(self, *what):
        pass

    def write_blocks(self, blocks, target, pages):
        if isinstance(target[0], torch.Tensor):
            _ = [part.contiguous() for part in blocks]
        queue(2)  # copies to pages that follow one another

    def copy_blocks(self, *what):
        pass

    def main_dims(self, moments):
        return made(moments)[0]

    def factors(self, matrices):
        whole = matrices.new_empty(matrices.shape)
        return Factors(*made(whole, whole))


class DeviceRows:
    """The same of rows."""

    linear = staticmethod(linear)

    def rms_norm(self, x, *how):
        return made(x)[0]

    def corrected_norm(self, x, *how):
        return made(x)[0]

    def add_norm(self, x, *how):
        return made(x, x)

    def place_heads(self, x, how):
        tokens, heads, dim = x.shape
        keys = (heads - how.queries) // 2
        queue(1)
        return tuple(x.new_empty(tokens, count, dim) for count in (how.queries, keys, keys))

    def swiglu(self, x):
        queue(1)
        return x.new_empty(len(x), x.shape[1] // 2)


def decoder_of(name: str, dtype: str) -> Decoder:
    """Some layers of a model, without numbers."""
    layers = 2 * work_memory.MOST_LAYERS + 3
    config = dummy_config(shape_config(name) | {"num_hidden_layers": layers, "dtype": dtype}, 1 << 20)
    shape, kind = config.shape, getattr(torch, dtype)
    E, inner, D = shape.hidden_size, shape.intermediate_size, shape.head_dim
    Q, H = shape.num_query_heads, shape.num_kv_heads
    sizes = ((Q + 2 * H) * D, E), (E, Q * D), (2 * inner, E), (E, inner)
    qkv, output, gate_up, down = (empty(*size, dtype=kind) for size in sizes)
    layer = LayerWeights(empty(E), qkv, None, empty(Q + H, D), output, None, empty(E), gate_up, down)
    table = empty(shape.vocab_size, E, dtype=kind)
    weights = DecoderWeights(table, (layer,) * shape.num_layers, empty(E), table, "none")
    return Decoder(config, weights).with_rows(DeviceRows(), DeviceRows(), most=sys.maxsize)


@pytest.fixture
def read(monkeypatch) -> Callable[..., Peak]:
    """Reads a prompt; returns what it took."""
    make_pages = build.make_pages
    monkeypatch.setattr(build, "make_pages", lambda *sizes: make_pages(*sizes[:-1], META))

    def read(decoder: Decoder, scout: ScoutConfig, everything: bool, tokens: int) -> Peak:
        blocks, size = 1 + tokens // scout.block_size, scout.block_size
        most = 0 if everything else min(blocks, 2 * scout.budget_blocks)
        plan = MemoryPlan(size, 1, blocks * size, blocks, None if everything else 1 + most, most, 0)
        cache = build.build_cache(decoder.shape, scout, plan, DeviceOps(META), kv_dtype="auto")
        built = build.build(decoder.shape, decoder, scout, DeviceOps(META), cache, build.Around(lambda store: None))
        store, seen = cache.store, sampler.Seen(cache.store, decoder.shape.vocab_size)
        monkeypatch.setattr(built.prompt, "finish", store.finish_prompt)  # else numbers are asked for
        store.admit(0, blocks, most)
        peak = store.side = Peak()

        with monkeypatch.context() as patched, peak:
            patched.setattr(torch, "Generator", NoGenerator)
            runner.Runner(decoder, built.prompt, built.attention, seen).prefill(0, [0] * tokens)
        return peak

    return read


class NoGenerator:
    """None for a device that has none."""

    def __init__(self, device) -> None:
        pass

    def manual_seed(self, seed):
        return None


DESIGNS = {
    "scout": (ScoutConfig(), False),
    "three ahead": (ScoutConfig(lookahead=3), False),
    "plain": (ScoutConfig().changed(predictor="plain", digest="keys2"), False),
    "oracle": (ScoutConfig().changed(predictor="oracle", digest="keys2"), False),
    "resident": (ScoutConfig(), True),
    "full": (ScoutConfig(budget=None), True),
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("model", "dtype"), [("qwen3-8b", "bfloat16"), ("qwen3-0.6b", "float32")])
def test_a_prompt_has_the_room_that_it_takes(read, model, dtype, design):
    decoder, (scout, everything) = decoder_of(model, dtype), DESIGNS[design]
    config = EngineConfig(device="cuda", device_memory="all" if everything else "slots", max_num_seqs=1)
    for tokens in (2048, 40_000, 131_072):
        room = work_bytes(decoder.shape, scout, config, tokens) - LIBRARIES
        took = sum(read(decoder, scout, everything, tokens).bytes.values())
        assert 1.0 < room / took < 1.3, tokens


@pytest.mark.parametrize(("tokens", "most"), [(8192, 125), (16_384, 235), (40_000, 370)])
def test_little_is_queued_beside_each_layer_of_a_prompt(read, tokens, most):
    """A GPU starts few of these kernels before a large kernel of the next layers ends."""
    decoder = decoder_of("qwen3-8b", "bfloat16")
    queued = read(decoder, ScoutConfig(), False, tokens).queued["side"] / decoder.shape.num_layers
    assert 0.9 * most < queued <= most


@pytest.mark.parametrize("design", DESIGNS)
def test_room_for_a_prompt_is_room_for_shorter_ones(design):
    scout, everything = DESIGNS[design]
    config = EngineConfig(device="cuda", device_memory="all" if everything else "slots", max_num_seqs=1)
    shape = decoder_of("qwen3-8b", "bfloat16").shape
    rooms = [work_bytes(shape, scout, config, tokens) for tokens in range(32, 40_000, 32)]
    assert rooms == sorted(rooms)


def test_sizes_are_those_of_the_program():
    assert (work_memory.PIECE, work_memory.FIRST) == (runner.PIECE, runner.FIRST)
    assert (work_memory.TRIED, work_memory.HELD_OUT) == (trial.TRIED, trial.HELD_OUT)
    assert (work_memory.VOTERS, work_memory.SCORED_BYTES) == (prefill.VOTERS, prefill.SCORED_BYTES)
    for tokens in (1, 2047, 2049, 9000, 40_000, 131_072):
        assert work_memory.tried(tokens) >= len(range(0, tokens, trial.sample_every(tokens)))


def test_logits_and_what_is_drawn_from_them_have_room():
    vocab, rows = 1000, 8
    seen = sampler.Seen(None, vocab)
    seen._kept = (
        empty(1, rows, vocab, dtype=torch.bool),
        empty(1, rows, vocab, dtype=torch.int),
        empty(1, rows, vocab),
    )
    draws, index = empty(9, rows), empty(rows, dtype=torch.int64)
    head, hidden = empty(vocab, 8, dtype=torch.bfloat16), empty(rows, 8, dtype=torch.bfloat16)
    with Peak() as peak:
        logits = linear(hidden, head).float()
        sampler.draw(logits, draws, sampler.Drawing(True, True), seen.penalise(logits, draws, index))
    kept, sorting = sum(one.nbytes for one in seen._kept), 12 * rows * vocab  # a copy of numbers and places
    assert peak.bytes["main"] + kept + sorting < work_memory.PER_LOGIT * rows * vocab * 1.01


def test_ranks_need_as_much_each():
    shape = decoder_of("qwen3-8b", "bfloat16").shape
    config = EngineConfig(device="cuda", device_memory="all")
    one = work_bytes(shape, ScoutConfig(), config, 8192)
    both = work_bytes(shape, ScoutConfig(), replace(config, tensor_parallel_size=2), 8192)
    assert one < both < 2 * one
