"""Decoding with this engine and with others: tokens a second and memory, against context length and batch size."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import NamedTuple

from .job import DecodeJob, Setup, Timed, Traced
from .process import ENGINES, EngineProcess, Serving

REFERENCES = ("transformers", "transformers-static", "llama.cpp-converted", "dense", "llama.cpp")
"""Engines with full attention. The first of these that runs gives the tokens that others are compared with."""

PACKAGES = {
    "transformers": ("transformers", "transformers"),
    "transformers-static": ("transformers", "transformers"),
    "transformers-scout": ("transformers", "transformers"),
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
    "llama.cpp-converted": ("llama_cpp", "llama-cpp-python"),
}
"""The module that an engine needs, and the package that installs it."""

Watch = Callable[[str], object]
"""watch(what is being done)"""


@dataclass(frozen=True)
class Workload:
    """What to run.

    contexts, batches: each pair is a case; a case of more than `largest` tokens in all its prompts is left out.
    rounds, steps: turns of each engine, and decode steps of a turn. One more round comes first and is not counted.
    traced: steps after the counted ones, to see where the time goes; as many are beside them.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    engines: tuple[str, ...] = tuple(ENGINES)
    rounds: int = 5
    steps: int = 6
    traced: int = 16
    largest: int = 16384

    def cases(self) -> list[tuple[int, int]]:
        """The (context, batch) pairs to run, the shortest context first."""
        return [case for case in self._pairs() if case[0] * case[1] <= self.largest]

    def left_out(self) -> list[tuple[int, int]]:
        """The pairs that are too large."""
        return [case for case in self._pairs() if case[0] * case[1] > self.largest]

    @property
    def new_tokens(self) -> int:
        """Tokens that each sequence gets: the prompt's first, and one of every step."""
        return 1 + (self.rounds + 1) * self.steps + 2 * self.traced

    def _pairs(self) -> list[tuple[int, int]]:
        return sorted(itertools.product(self.contexts, self.batches))


class Result(NamedTuple):
    """One engine in one case.

    dtype, cache_dtype, calibration: see `Setup`.   budget: tokens attended to; None where it is all.
    ms_per_step: median of the counted steps.
    tokens_per_s: of all sequences together.   rss_mib, peak_mib: of the engine's process after the steps, and at most.
    same_tokens: share of the new tokens that come before the first that is not the reference engine's, mean over the
        sequences; None where no reference ran.
    hidden_ms, unhidden_ms: of the CPU's attention to blocks without a slot, medians of the counted steps.
    share: these blocks as a part of all chosen blocks. All three are None where the engine has a slot for every block.
    """

    engine: str
    dtype: str
    cache_dtype: str
    calibration: str | None
    context: int
    batch: int
    budget: int | None
    ms_per_step: float
    tokens_per_s: float
    prefill_tokens_per_s: float
    rss_mib: float
    peak_mib: float
    same_tokens: float | None
    hidden_ms: float | None = None
    unhidden_ms: float | None = None
    share: float | None = None


class Measured(NamedTuple):
    """A case: the result of each engine, and further steps of engines that tell where the time goes."""

    results: list[Result]
    traced: dict[str, Traced]


def missing(engine: str, job: DecodeJob) -> str | None:
    """Why an engine cannot run a job on this machine, or None where it can."""
    module, package = PACKAGES.get(engine, (None, None))
    if module is not None and find_spec(module) is None:
        return f"{engine} is not installed: pip install {package}"
    if module == "llama_cpp" and job.gguf is None:
        return f"{engine} needs a model that comes as a .gguf file"
    return None


def measure(workload: Workload, job: DecodeJob, watch: Watch) -> Measured:
    """Every engine in one case, each in its own process.

    They work one at a time: each reads its prompts, then they decode in turns of `workload.steps` steps.
    """
    case = f"{len(job.prompts)} x {len(job.prompts[0])} tokens"
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        runs: dict[str, _Run] = {}
        for engine in workload.engines:
            watch(f"{case}: {engine} reads")
            own = replace(job, scout=job.scout.changed(budget=None)) if engine in REFERENCES else job
            processes[engine] = stack.enter_context(closing(EngineProcess(engine, own)))
            setup = processes[engine].ask(Serving.setup)
            runs[engine] = _Run(own, setup, processes[engine].ask(Serving.read))
        for counted, engine in _turns(workload):
            watch(f"{case}: {engine} decodes")
            taken = processes[engine].ask(Serving.steps, workload.steps)
            runs[engine].steps.extend(taken if counted else ())
        for engine, process in processes.items():
            runs[engine].answers.extend(process.ask(Serving.answers))
            runs[engine].memory = process.ask(Serving.memory)
        traced = {engine: process.ask(Serving.traced, workload.traced) for engine, process in processes.items()}
    reference = next((runs[engine].answers for engine in REFERENCES if engine in runs), None)
    results = [_result(engine, run, reference) for engine, run in runs.items()]
    return Measured(results, {engine: steps for engine, steps in traced.items() if steps is not None})


@dataclass
class _Run:
    """What became of a job: seconds of reading, steps, new tokens, bytes of memory at the end and at most."""

    job: DecodeJob
    setup: Setup
    reading: float
    steps: list[Timed] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)


def _result(engine: str, run: _Run, reference: list[list[int]] | None) -> Result:
    batch, context = len(run.job.prompts), len(run.job.prompts[0])
    median = statistics.median(step.seconds for step in run.steps)
    far = [step.far for step in run.steps if step.far is not None]
    return Result(
        engine=engine,
        **run.setup._asdict(),
        context=context,
        batch=batch,
        budget=run.job.scout.budget,
        ms_per_step=median * 1e3,
        tokens_per_s=batch / median,
        prefill_tokens_per_s=batch * context / run.reading,
        rss_mib=run.memory[0] / 2**20,
        peak_mib=run.memory[1] / 2**20,
        same_tokens=None if reference is None else _same(run.answers, reference),
        hidden_ms=statistics.median(one.hidden_s for one in far) * 1e3 if far else None,
        unhidden_ms=statistics.median(one.unhidden_s for one in far) * 1e3 if far else None,
        share=sum(one.far_blocks for one in far) / max(1, sum(one.chosen_blocks for one in far)) if far else None,
    )


def _turns(workload: Workload) -> Iterator[tuple[bool, str]]:
    """Whether it counts, and which engine it is; every round begins with another."""
    for number in range(workload.rounds + 1):
        first = number % len(workload.engines)
        for engine in (*workload.engines[first:], *workload.engines[:first]):
            yield number > 0, engine


def _same(answers: list[list[int]], reference: list[list[int]]) -> float:
    return statistics.fmean(
        sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=True))) / len(mine)
        for mine, theirs in zip(answers, reference, strict=True)
    )
