"""Model and attention together: a prompt in, logits out; a batch of tokens in, logits out."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.prompt.prefill import PromptAttention, PromptLayer
from ..attention.step import Attention, Step, StepStats
from ..models.decoder import Decoder
from ..runtime.graphs import CudaGraphs, Graphs, padded
from .sampler import GREEDY, Draw, Drawing, Scores, Seen, draw, drawing_of, not_finite

Progress = Callable[[int, int], None]
"""progress(done, total), in tokens."""

PIECE, PIECE_ON_CPU = 2048, 256
"""Tokens of a prompt that a layer reads at once: between two pieces, others decode, and on a CPU within them."""
FIRST = 8192
"""Tokens that a GPU attends to at once where nothing comes before them: PyTorch has a faster kernel for that case."""

SCORED_BYTES = 64 << 20
"""Of logits that are held at once for the log-probabilities of a prompt's tokens."""

Reading = Generator[int, None, Tensor]
"""A prompt that is read in pieces; see `Runner.read`."""

Record = list[PromptLayer]
"""A prompt that was read, layer by layer."""


class Decoded(NamedTuple):
    """What came of a step.   logits: float32 [B, vocab], valid until the next step.

    tokens: the next ones, NOT_FINITE where logits are not.
    """

    logits: Tensor
    stats: StepStats
    tokens: list[int]


class Runner:
    """Runs the decoder on sequences that have a row in the store."""

    def __init__(
        self,
        decoder: Decoder,
        prompt_attention: PromptAttention,
        attention: Attention[Any],
        seen: Seen,
        *,
        graphs: bool = False,
    ) -> None:
        """`seen`: the sequences' tokens, for penalties.   graphs: whether steps are captured as graphs."""
        self.decoder = decoder
        self.seen = seen
        self._graphs = Graphs(CudaGraphs()) if graphs else None
        self._prompt_attention = prompt_attention
        self.attention = attention
        self._ahead: Step | None = None
        self._given: torch.cuda.Event | None = None  # the end of what `settle` waits for next

    def prefill(
        self, row: int, token_ids: list[int], progress: Progress | None = None, record: Record | None = None
    ) -> Tensor:
        """Run a whole prompt, leaving its cache in `row`; returns the last position's logits, float32 [vocab].

        What the row's closed blocks hold of the prompt already is not run again.
        record: an empty one, to be filled for `replay`.
        """
        reading = self.read(row, token_ids, record)
        try:
            while True:
                done = next(reading)
                if progress is not None:
                    progress(done, len(token_ids))
        except StopIteration as end:
            logits: Tensor = end.value
            return logits

    @torch.inference_mode()
    def read(
        self, row: int, token_ids: list[int], record: Record | None = None, scores: Scores | None = None
    ) -> Reading:
        """Run a prompt in pieces, see `prefill`; yields between short turns how much of the work is done, in tokens.

        scores: to be filled with log-probabilities of a prompt of which the row holds nothing.
        Raises ModelError where these are not finite.
        """
        decoder, device, count = self.decoder, self.decoder.device, len(token_ids)
        known = self._prompt_attention.known(row)
        rope = decoder.rope(torch.arange(known, count, device=device), count)
        attend = self._prompt_attention.begin_in_turns(row, rope, record)
        tokens, on_cpu = torch.tensor(token_ids[known:], device=device), device.type == "cpu"
        first = None if on_cpu or known else FIRST
        reading = decoder.read(tokens, rope, attend, PIECE_ON_CPU if on_cpu else PIECE, first)
        try:
            while True:
                yield known + next(reading)
        except StopIteration as end:
            x: Tensor = end.value
        self._prompt_attention.finish(row, count)
        if scores is not None:
            for _ in self._score(x, scores):
                yield count
        return decoder.logits(decoder.normed_output(x[-1:]))[0]

    def _score(self, x: Tensor, scores: Scores) -> Generator[None, None, None]:
        """Find a prompt's log-probabilities, from the last layer's outputs, [T, E]; yields after each piece."""
        decoder = self.decoder
        size = max(1, SCORED_BYTES // (4 * decoder.shape.vocab_size))
        for start in range(0, len(scores.tokens) - 1, size):
            logits = decoder.logits(decoder.normed_output(x[start : start + size]))
            if not logits.amax(-1).isfinite().all():
                raise not_finite(decoder.shape.dtype)
            scores.add(logits)
            yield

    def settle(self) -> None:
        """Wait for what a GPU's stream had been given before the last call: the work since then keeps the GPU busy."""
        if self.decoder.device.type != "cuda":
            return
        given = torch.cuda.Event()  # type: ignore[no-untyped-call]
        given.record()
        if self._given is not None:
            self._given.synchronize()
        self._given = given

    @torch.inference_mode()
    def first(self, row: int, logits: Tensor, one: Draw) -> int:
        """Draw the token after a prompt from its logits, float32 [vocab]; NOT_FINITE where they are not.

        The sequence is in `seen` by then, if its draw has penalties.
        """
        drawing, draws = drawing_of([one]), torch.tensor([one], dtype=torch.float32, device=logits.device).T
        penalised = None
        if drawing.penalised:
            penalised = self.seen.penalise(logits[None], draws, torch.tensor([row], device=logits.device))
        return int(draw(logits[None], draws, drawing, penalised))

    @torch.inference_mode()
    def replay(self, row: int, record: Record) -> None:
        """Leave in `row` the cache of a prompt that was recorded, perhaps with another configuration."""
        for layer, prompt in enumerate(record):
            self._prompt_attention.place(row, layer, prompt)
        self._prompt_attention.finish(row, record[0].k.shape[0])

    @torch.inference_mode()
    def decode(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int] | None = None,
        draws: Sequence[Draw] = (),
    ) -> Decoded:
        """Run one token of each sequence.   rows: of the sequences in the cache's tables; None is 0, 1, ...

        draws: how the next tokens are drawn; without, they are the likeliest.
        """
        attention, drawing, count = self.attention, drawing_of(draws), len(token_ids)
        unused = 0 if rows is not None else self._padding(count)
        rows = range(count + unused) if rows is None else rows
        step = self._prepared(rows, count)
        attention.exchange.set_tokens([*token_ids, *[0] * unused], [*positions, *[0] * unused])
        if any(drawing):
            attention.exchange.set_draws([*draws, *[Draw()] * unused])
        attention.start(step)
        run = partial(self._run, step, drawing)
        if self._graphs is not None and step.key is not None:
            logits = self._graphs.run((step.key, drawing), run)
            attention.count(step)
            self._prepare_ahead(rows, count)
            self.decoder.ranks.settle()
        else:
            logits = run()
            attention.count(step)
        counts, tokens = attention.exchange.read()
        return Decoded(logits[:count], attention.end(step, counts), tokens[:count])

    def _prepared(self, rows: Sequence[int], count: int) -> Step:
        """The next step, prepared: ahead, if it is as was expected then."""
        step, self._ahead = self._ahead, None
        if step is not None and self.seen.store.is_prepared(step.batch, rows, count):
            return step
        prepared: Step = self.attention.prepare(rows, count)
        return prepared

    def _prepare_ahead(self, rows: Sequence[int], count: int) -> None:
        """Prepare the step that comes next if nobody comes or goes, while the device works on this one."""
        if self.seen.store.has_room(rows[:count]):
            self._ahead = self.attention.prepare(rows, count)

    def _padding(self, count: int) -> int:
        """Sequences that a batch is padded with; none in the last row, where a prompt may be being read."""
        if self._graphs is None or self.seen.store.slots is None:
            return 0
        return padded(count, self.seen.store.num_rows - 1) - count

    @property
    def not_replayed(self) -> int:
        """Steps that were no replays so far, where steps are captured; else 0, since none ever is one."""
        return 0 if self._graphs is None else self._graphs.not_replayed

    def close(self) -> None:
        """Let go of captured steps, which hold sums of ranks."""
        self._graphs = None

    def _run(self, step: Step, drawing: Drawing = GREEDY) -> Tensor:
        """The logits of a step that was prepared; `drawing`: what the next tokens are drawn by."""
        attention, decoder, size = self.attention, self.decoder, step.batch.size
        exchange = attention.exchange
        exchange.receive()
        tokens, positions = exchange.device.numbers[4:, :size]
        rope = decoder.rope(positions)
        logits = decoder.logits(decoder.forward(tokens, rope, attention.begin(step, rope)))
        attention.finish(step)
        draws, penalised = exchange.device.draws[:, :size], None
        if drawing.penalised:
            self.seen.feed(step.batch.index, tokens)
            penalised = self.seen.penalise(logits, draws, step.batch.index)
        exchange.drawn[:size] = draw(logits, draws, drawing, penalised)
        exchange.tell()
        return logits
