"""The engine of this project in the decode benchmark: with a budget, with slots as well, or with full attention."""

import time

from typing_extensions import override

from ...config import Memory, SamplingParams
from ...engine.llm import LLM
from ...engine.scheduler import Sequence
from ...models.loader import config_of, open_files
from ..timeline.recorder import Recorder
from .job import DecodeJob, Decoding, Far, Setup, Traced


class OurDecoding(Decoding):
    """With the device memory that is the default; `budget=None` in the job is full attention."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._llm = LLM(
            str(job.model),
            scout=job.scout,
            device_memory=self._device_memory(),
            max_model_len=job.max_len,
            max_num_seqs=len(job.prompts),
            dtype=job.dtype,
            workers=job.threads,
            torch_threads=job.threads,
        )
        params = SamplingParams(max_tokens=job.max_len, ignore_eos=True)
        self._sequences = [
            Sequence(row, list(prompt), params, job.max_len, self._llm.tokenizer)
            for row, prompt in enumerate(job.prompts)
        ]

    def _device_memory(self) -> Memory:
        return None

    @override
    def setup(self) -> Setup:
        weights = self._job.dtype if self._job.gguf is None else "stored"
        return Setup(weights, self._job.dtype, self._llm.engine.calibration)

    @override
    def read(self) -> None:
        for sequence in self._sequences:
            self._llm.engine.add(sequence)
        while not all(sequence.output_ids for sequence in self._sequences):
            self.step()  # reads for a while

    @override
    def step(self) -> Far | None:
        engine = self._llm.engine
        before = engine.stats.steps
        for sequence in engine.step():
            if sequence.ready.error is not None:
                raise sequence.ready.error
        if engine.store.resident:
            return None
        after = engine.stats.steps
        return Far(*(getattr(after, name) - getattr(before, name) for name in Far._fields))

    @override
    def answers(self) -> list[list[int]]:
        return [sequence.output_ids for sequence in self._sequences]

    @override
    def traced_steps(self, count: int) -> Traced:
        recorder = Recorder(self._llm.engine)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for watched in (True, False) * count:
            if watched:
                recorder.begin()
            started = time.perf_counter()
            self.step()
            seconds[watched].append(time.perf_counter() - started)
            recorder.end()
        return Traced(recorder.timeline(), seconds[True], seconds[False])


class SlotsDecoding(OurDecoding):
    """With slots of a multiple of the budget, as on a device that has memory of its own."""

    @override
    def _device_memory(self) -> Memory:
        job = self._job
        shape = config_of(open_files(job.model), job.dtype).shape
        slots = round(job.slots * (job.scout.budget_blocks or 0))
        return len(job.prompts) * (1 + slots) * shape.block_bytes(job.scout.block_size)
