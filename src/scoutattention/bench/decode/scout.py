"""The engine of this project in the decode benchmark: with a budget, with slots as well, or with full attention."""

from typing_extensions import override

from ...config import Memory, SamplingParams, ScoutConfig
from ...engine.llm import LLM
from ...engine.scheduler import Sequence
from .job import DecodeJob, Decoding, Setup, Span
from .stages import Stages, watch_engine


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
        self._stages: Stages | None = None

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
    def traced_step(self) -> list[Span]:
        if self._stages is None:
            self._stages = watch_engine(self._llm.engine)
        before = len(self._stages.spans)
        self.step()
        return self._stages.spans[before:]


class SlotsDecoding(OurDecoding):
    """With slots of twice the budget, as on a device that has memory of its own."""

    device_memory = "slots"
