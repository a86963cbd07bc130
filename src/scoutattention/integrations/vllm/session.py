"""A worker's sequences: what vLLM says of requests, its layers' inputs, and the method over their keys and values."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.build import Around, build, build_cache
from ...attention.step import StepStats
from ...engine.device import make_ops, make_transport
from ...errors import ConfigError, UnsupportedModelError
from ...hardware.host import available_memory
from ...runtime.ranks import Ranks, gathered
from ...runtime.workers import Workers
from ..queries import scaled
from ..rows import Pass, Piece, Rows
from .memory import plan_for_all
from .model import ServedModel
from .queries import LayerQueries, place
from .settings import Settings

GIVES = ("hidden_states", "residual")
"""What a decoder layer is given: its input is their sum."""


class Session:
    """One model of one worker.

    rows: the sequences.   names: gives the requests of vLLM's batch, in its order.
    """

    def __init__(self, served: ServedModel, settings: Settings, workers: Workers, ranks: Ranks) -> None:
        """`settings`: with vLLM's numbers of sequences and tokens.

        Raises CapacityError where memory is too small for all of them at once.
        """
        scout, engine = settings
        free = int(gathered(ranks, torch.tensor([available_memory()])).min())
        plan = plan_for_all(served.whole, settings, free)
        ops = make_ops(engine, torch.device("cpu"), workers)
        cache = build_cache(served.shape, scout, plan, ops, kv_dtype=engine.kv_dtype, ranks=ranks)
        around = Around(partial(make_transport, ops=ops, workers=workers, scale=served.shape.scale))
        queries = LayerQueries(served.name, served.layers, served.shape, served.scaling, ranks, workers)
        if not plan.resident:
            queries.check()
        built = build(served.shape, queries, scout, ops, cache, around)
        self.rows = Rows(plan, built, place)
        self._pass: Pass | None = None
        self.names: Callable[[], Sequence[str]] = tuple
        self._served = served
        self._input: Tensor | None = None
        for block, _ in served.layers:
            self._watch(block)

    @property
    def stats(self) -> StepStats:
        """What all decode steps did."""
        return self.rows.stats

    def _watch(self, block: nn.Module) -> None:
        """Keep the input of a layer whenever it runs."""
        names = list(inspect.signature(block.forward).parameters)
        if GIVES[0] not in names:
            raise UnsupportedModelError(
                f"{type(block).__name__} of {self._served.name} takes {', '.join(names)}, and scout's plugin looks for "
                f"{GIVES[0]}"
            )

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            hidden, residual = given[GIVES[0]], given.get(GIVES[1])
            self._input = hidden if residual is None else hidden + residual

        block.register_forward_pre_hook(before, with_kwargs=True)

    def come_and_go(self, gone: Sequence[str], prompts: dict[str, int]) -> None:
        """Before a pass: release requests that ended, and admit those that begin, or begin anew.

        prompts: of these, how many tokens come before the first decode step.
        """
        self._pass = None
        for name in (*gone, *prompts):
            self.rows.release(name)
        for name, prompt in prompts.items():
            self.rows.admit(name, prompt)

    def begin(self, names: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Start the pass of a batch.   starts: places of each request's first token, and the end.

        lengths: tokens of each request behind the pass.
        """
        if self._pass is not None:
            return
        pieces = [
            Piece(name, start, end - start) for name, start, end in zip(names, starts[:-1], starts[1:], strict=True)
        ]
        for piece, length in zip(pieces, lengths, strict=True):
            known = self.rows.length(piece.name)
            if known + piece.count != length:
                raise ConfigError(
                    f"vLLM has {length - piece.count} tokens of a request, and scout's store {known}: leave prefix "
                    "caching and speculative decoding off"
                )
        self._pass = self.rows.begin(pieces)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the pass in one layer.   q: [T, heads, D].   k, v: [T, H, D].   Returns [T, heads, D]."""
        assert self._pass is not None
        assert self._input is not None
        shape = self._served.shape
        grouped = scaled(q, self._served.scaling).view(-1, shape.num_kv_heads, shape.group_size, shape.head_dim)
        return self._pass.attend(layer, grouped, k, v, self._input[: len(q)]).view(q.shape)
