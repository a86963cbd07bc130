"""Retrieval at any length and depth: what full attention finds in a prompt, and what a scout configuration finds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from ...config import EngineConfig, SamplingParams, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Reading, Record, Runner
from ...engine.scheduler import Sequence as Request
from ...errors import ConfigError, PromptError
from ...models.loader import LoadedModel
from ...models.text import Tokenizer
from ..fidelity.measure import for_one, for_truth
from .prompt import exact
from .tasks import SPREAD, TASKS, Puzzle

ANSWERABLE = 0.5
"""Full attention's score from which a row says more about the method than about the model."""


@dataclass(frozen=True)
class Grid:
    """What is asked: every task at every length and depth, `samples` times.

    lengths: prompt tokens.   depths: in percent, of the first thing to find.   seed: makes other prompts.
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    tasks: tuple[str, ...] = tuple(TASKS)
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lengths", "depths", "tasks"):
            if not getattr(self, name):
                raise ConfigError(f"{name} has 0 values and needs at least 1")
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(f"tasks={task!r} is not one of {', '.join(TASKS)}")
        for name, values, least in (("lengths", self.lengths, 1), ("samples", (self.samples,), 1)):
            if min(values) < least:
                raise ConfigError(f"{name}={min(values)} is below the least value {least}")
        if not 0 <= min(self.depths) <= max(self.depths) <= 100:
            raise ConfigError(f"depths={min(self.depths)} to {max(self.depths)} is not within 0 to 100 percent")

    def cells(self) -> Iterator["Cell"]:
        """Every combination; a task that is spread over the whole text has one per length."""
        for length in self.lengths:
            for task in self.tasks:
                depths: Iterable[int | None] = (None,) if task in SPREAD else self.depths
                yield from (Cell(task, length, depth) for depth in depths)

    def puzzles(self, cell: "Cell") -> Iterator[Puzzle]:
        """The questions of a cell."""
        for sample in range(self.samples):
            seed = f"{self.seed} {cell.task} {cell.length} {cell.depth} {sample}"
            yield TASKS[cell.task](seed, (cell.depth or 0) / 100)


class Cell(NamedTuple):
    """A task at a length in tokens and a depth in percent, None where the answer is everywhere."""

    task: str
    length: int
    depth: int | None


@dataclass(frozen=True)
class Row:
    """Mean scores of a cell, from 0 to 1: the part of the expected answers that was found."""

    task: str
    length: int
    depth: int | None
    full: float
    scout: float

    @property
    def difference(self) -> float:
        """Scout's score minus full attention's."""
        return self.scout - self.full


class Pair(NamedTuple):
    """Two engines over one model: full attention, and the configuration in question."""

    tokenizer: Tokenizer
    full: Engine
    scout: Engine

    def close(self) -> None:
        """Stop the worker threads."""
        self.full.close()
        self.scout.close()


def open_pair(model: LoadedModel, grid: Grid, scout: ScoutConfig, engine_config: EngineConfig) -> Pair:
    """Make the engines, for prompts as long as the grid's. Raises PromptError where they are too long for the model."""
    room = max(puzzle.max_tokens for cell in grid.cells() for puzzle in grid.puzzles(cell))
    longest, limit = max(grid.lengths) + room, engine_config.max_model_len or model.decoder.shape.max_positions
    if longest > limit:
        raise PromptError(
            f"prompts of {max(grid.lengths)} tokens with answers of {room} are longer than max_model_len={limit}: "
            "lower --lengths"
        )
    engine_config = replace(engine_config, max_model_len=longest)
    full = Engine(model.decoder, replace(scout, budget=None), for_truth(engine_config))
    other = Engine(model.decoder, scout, for_one(engine_config, engine_config.device_memory))
    share_prompts(full.runner, other.runner)
    return Pair(model.tokenizer, full, other)


def share_prompts(reader: Runner, follower: Runner) -> None:
    """From now on `follower` replays a prompt that `reader` has just read, and reads the others itself."""
    record: Record = []
    last: list[tuple[list[int], Tensor]] = []
    read_here, read_there = reader.read, follower.read

    def read(row: int, token_ids: list[int], **_: None) -> Reading:
        record.clear()
        last.clear()
        last.append((token_ids, (yield from read_here(row, token_ids, record))))
        return last[0][1]

    def follow(row: int, token_ids: list[int], **_: None) -> Reading:
        if not last or last[0][0] != token_ids:
            return (yield from read_there(row, token_ids))
        follower.replay(row, record)
        return last[0][1]

    reader.read = read  # type: ignore[method-assign, assignment]
    follower.read = follow  # type: ignore[method-assign, assignment]


def measure(pair: Pair, grid: Grid, progress: Callable[[int, int], None] | None = None) -> list[Row]:
    """Ask everything of both engines.   progress: told (done, total) prompts.

    Raises PromptError where a length is too short for a task, or too long for the engines.
    """
    cells = list(grid.cells())
    rows: list[Row] = []
    for cell in cells:
        scores = []
        for puzzle in grid.puzzles(cell):
            ids = exact(pair.tokenizer, puzzle, cell.length)
            scores.append([found(answer(e, pair.tokenizer, ids, puzzle), puzzle) for e in (pair.full, pair.scout)])
            if progress is not None:
                progress(len(rows) * grid.samples + len(scores), len(cells) * grid.samples)
        full, scout = (fmean(column) for column in zip(*scores, strict=True))
        rows.append(Row(*cell, full=full, scout=scout))
    return rows


def answer(engine: Engine, tokenizer: Tokenizer, ids: list[int], puzzle: Puzzle) -> str:
    """The engine's greedy answer to a prompt, without the lead that the prompt ends with. Raises what failed."""
    params = SamplingParams(max_tokens=puzzle.max_tokens)
    request = Request(0, ids, params, min(engine.plan.max_len, len(ids) + params.max_tokens), tokenizer)
    engine.add(request)
    while engine.busy:
        engine.step()
    if request.ready.error is not None:
        raise request.ready.error
    return request.text


def found(text: str, puzzle: Puzzle) -> float:
    """The part of the expected answers that a text contains, in either case."""
    return fmean(expected.lower() in text.lower() for expected in puzzle.answers)


def summarise(rows: Sequence[Row]) -> dict[str, object]:
    """Mean scores by task and of all rows, and of the rows that full attention answers at least half."""
    tasks = dict.fromkeys(row.task for row in rows)
    return {
        "tasks": {task: _means([row for row in rows if row.task == task]) for task in tasks},
        "all": _means(rows),
        "answerable": _means([row for row in rows if row.full >= ANSWERABLE]),
    }


def _means(rows: Sequence[Row]) -> dict[str, float | int | None]:
    means = {
        name: fmean(getattr(row, name) for row in rows) if rows else None for name in ("full", "scout", "difference")
    }
    return {"rows": len(rows), **means}


def heatmap(rows: Sequence[Row], value: str) -> dict[int, dict[int | None, float]]:
    """Mean of "full", "scout" or "difference" over the tasks, by length and depth."""
    lengths, depths = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("length", "depth"))
    groups = {
        length: {d: [r for r in rows if (r.length, r.depth) == (length, d)] for d in depths} for length in lengths
    }
    return {
        length: {depth: fmean(getattr(row, value) for row in group) for depth, group in line.items() if group}
        for length, line in groups.items()
    }


def as_dict(row: Row) -> dict[str, object]:
    """A row as JSON has it."""
    return asdict(row) | {"difference": row.difference}
