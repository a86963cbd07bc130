"""llama.cpp in the decode benchmark, as people use it and converted; its C interface as llama-cpp-python binds it."""

import ctypes
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from typing_extensions import override

from ...config import DTypeName
from ...errors import ModelFileError
from .job import DecodeJob, Decoding, Far, Setup

FILE_TYPES = {
    "float32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "bfloat16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "float16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
}
CACHE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}  # of ggml: its type enum
PROMPT_TOKENS = 512  # of a prompt that are read at once; its default, and no slower than more


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _say_nothing(level: int, text: bytes, data: object) -> None:
    pass


class LlamaDecoding(Decoding):
    """The model's file as it is, with the cache that llama.cpp takes unless told otherwise, and its flash attention."""

    cache_dtype: DTypeName = "float16"

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        llama_cpp.llama_log_set(_say_nothing, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(self._file()).encode(), llama_cpp.llama_model_default_params()
        )
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(job, self.cache_dtype))
        if not self._context:
            raise ModelFileError(f"llama.cpp cannot run {job.gguf} with a {self.cache_dtype} cache: leave it out")
        self._vocab = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(max(PROMPT_TOKENS, len(job.prompts)), 0, 1)
        self._answers: list[list[int]] = [[] for _ in job.prompts]

    @override
    def setup(self) -> Setup:
        about = ctypes.create_string_buffer(100)  # as in "llama 135M Q4_1"
        llama_cpp.llama_model_desc(self._model, about, len(about))
        return Setup(about.value.decode().split(" ", 2)[-1], self.cache_dtype)

    @override
    def read(self) -> None:
        for row, prompt in enumerate(self._job.prompts):
            for start in range(0, len(prompt), PROMPT_TOKENS):
                tokens = prompt[start : start + PROMPT_TOKENS]
                self._decode([(token, start + i, row) for i, token in enumerate(tokens)], wanted={len(tokens) - 1})
            self._answers[row].append(self._likeliest(self._batch.n_tokens - 1))

    @override
    def step(self) -> Far | None:
        position = len(self._job.prompts[0]) + len(self._answers[0]) - 1
        fed = [(answer[-1], position, row) for row, answer in enumerate(self._answers)]
        self._decode(fed, wanted=set(range(len(fed))))
        for row, answer in enumerate(self._answers):
            answer.append(self._likeliest(row))
        return None

    @override
    def answers(self) -> list[list[int]]:
        return self._answers

    def _file(self) -> Path:
        assert self._job.gguf is not None
        return self._job.gguf

    def _decode(self, entries: list[tuple[int, int, int]], *, wanted: set[int]) -> None:
        """Run (token, position, sequence) entries; logits are made for the `wanted` ones."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, row) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = i in wanted
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise ModelFileError(f"llama.cpp cannot run {self._job.gguf}: leave llama.cpp out")

    def _likeliest(self, entry: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, entry)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


class ConvertedLlamaDecoding(LlamaDecoding):
    """Weights and cache in the job's dtype: the model's file is first converted to it, into a temporary one."""

    def __init__(self, job: DecodeJob) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scout-bench-")
        self.cache_dtype = job.dtype
        super().__init__(job)

    @override
    def setup(self) -> Setup:
        return Setup(self._job.dtype, self.cache_dtype)

    def _file(self) -> Path:
        return _converted(self._job, Path(self._folder.name))


def _converted(job: DecodeJob, folder: Path) -> Path:
    """The model's file with every matrix in the job's dtype."""
    target = folder / f"{job.dtype}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FILE_TYPES[job.dtype], True, job.threads
    source = str(job.gguf).encode()
    if llama_cpp.llama_model_quantize(source, str(target).encode(), ctypes.byref(params)) != 0:
        raise ModelFileError(f"llama.cpp cannot convert {job.gguf} to {job.dtype}: leave llama.cpp out")
    return target


def _context_params(job: DecodeJob, cache_dtype: DTypeName) -> llama_cpp.llama_context_params:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = len(job.prompts) * job.max_len, len(job.prompts)
    params.n_batch, params.n_ubatch = PROMPT_TOKENS, PROMPT_TOKENS
    params.n_threads = params.n_threads_batch = job.threads
    params.type_k = params.type_v = CACHE_TYPES[cache_dtype]
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return params
