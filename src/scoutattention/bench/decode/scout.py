"""The engine of this project in the decode benchmark: with a budget, with slots as well, or with full attention."""

import time

from typing_extensions import override

from ...config import Memory, SamplingParams, ScoutConfig
from ...engine.llm import LLM
from ...engine.scheduler import Sequence
from ..timeline.recorder import Recorder
from .job import DecodeJob, Decoding, Setup, Traced


class OurDecoding(Decoding):
    """With the device memory that is the default; `budget=None` in the job is full attention."""

    device_memory: Memory = None

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._llm = LLM(
            str(job.model),
            scout=ScoutConfig(budget=job.budget),
            device_memory=self.device_memory,
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
    def step(self) -> None:
        for sequence in self._llm.engine.step():
            if sequence.ready.error is not None:
                raise sequence.ready.error

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
    """With slots of twice the budget, as on a device that has memory of its own."""

    device_memory = "slots"
