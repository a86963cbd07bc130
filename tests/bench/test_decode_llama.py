"""What llama.cpp is fed, with a stand-in for its bindings: tokens, positions and sequences."""

import ctypes
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from scoutattention import ScoutConfig
from scoutattention.bench.decode.job import DecodeJob, Setup
from scoutattention.errors import ModelFileError

NAME = "scoutattention.bench.decode.llama_cpp"
VOCAB = 1000
JOB = DecodeJob(
    *(Path(), Path("m.gguf"), "bfloat16", (tuple(range(600)), tuple(range(300, 900)))),
    max_len=620,
    scout=ScoutConfig(budget=None),
    slots=2.0,
    threads=2,
)


class FakeLlama(ModuleType):
    """Every token's likeliest successor is the token after it. `fed` has a list of entries for each call."""

    LLAMA_FLASH_ATTN_TYPE_ENABLED = 1
    LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_BF16, LLAMA_FTYPE_MOSTLY_F16 = 0, 32, 1

    def __init__(self):
        super().__init__("llama_cpp")
        self.fed, self.fails, self.converted = [], False, None
        for name in ("log_set", "backend_init", "model_default_params", "model_get_vocab"):
            setattr(self, f"llama_{name}", lambda *args: SimpleNamespace())
        self.llama_context_params = SimpleNamespace
        self.llama_context_default_params = self.llama_model_quantize_default_params = SimpleNamespace
        self.llama_log_callback = lambda function: function
        self.llama_n_vocab = lambda vocab: VOCAB

    def llama_model_load_from_file(self, path, params):
        self.loaded = path

    def llama_model_desc(self, model, buffer, size):
        buffer.value = b"llama 135M Q4_K - Medium"

    def llama_model_quantize(self, source, target, params):
        self.converted = (source, params.ftype)
        return 0

    def llama_init_from_model(self, model, params):
        self.params = params
        return True

    def llama_batch_init(self, tokens, embd, sequences):
        rows = [[0] * tokens for _ in range(4)]
        batch = SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(tokens)])
        batch.token, batch.pos, batch.n_seq_id, batch.logits = rows
        return batch

    def llama_decode(self, context, batch):
        count = batch.n_tokens
        sequences = [batch.seq_id[i][0] for i in range(count)]
        self.fed.append(list(zip(batch.token[:count], batch.pos[:count], sequences, batch.logits[:count], strict=True)))
        return self.fails

    def llama_get_logits_ith(self, context, entry):
        token, _, _, wanted = self.fed[-1][entry]
        assert wanted
        logits = (ctypes.c_float * VOCAB)()
        logits[token + 1] = 1.0
        return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))


@pytest.fixture
def llama(monkeypatch):
    fake = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.setattr(ctypes, "byref", lambda thing: thing)
    sys.modules.pop(NAME, None)
    fake.module = import_module(NAME)
    yield fake
    del sys.modules[NAME]


def test_each_sequence_goes_on_from_its_own_prompt(llama):
    decoding = llama.module.LlamaDecoding(JOB)
    assert (llama.params.n_ctx, llama.params.n_seq_max) == (1240, 2)
    decoding.read()
    decoding.step()
    decoding.step()
    assert decoding.answers() == [[600, 601, 602], [900, 901, 902]]
    for row, prompt in enumerate(JOB.prompts):
        read = [entry for call in llama.fed[:4] for entry in call if entry[2] == row]
        assert [(token, position) for token, position, _, _ in read] == list(zip(prompt, range(600), strict=True))
        assert [position for _, position, _, wanted in read if wanted] == [511, 599]
    assert llama.fed[4:] == [[(600, 600, 0, 1), (900, 600, 1, 1)], [(601, 601, 0, 1), (901, 601, 1, 1)]]
    assert decoding.traced_steps(1) is None


def test_it_runs_at_its_best_or_with_what_the_others_have(llama):
    best = llama.module.LlamaDecoding(JOB)
    assert (llama.converted, llama.loaded) == (None, b"m.gguf")
    assert (llama.params.type_k, llama.params.type_v, llama.params.flash_attn_type) == (1, 1, 1)
    assert best.setup() == Setup("Q4_K - Medium", "float16")
    converted = llama.module.ConvertedLlamaDecoding(JOB)
    assert llama.converted == (b"m.gguf", 32)
    assert llama.loaded.endswith(b"/bfloat16.gguf")
    assert (llama.params.type_k, llama.params.type_v, llama.params.flash_attn_type) == (30, 30, 1)
    assert converted.setup() == Setup("bfloat16", "bfloat16")


def test_a_failure_is_an_error(llama):
    decoding = llama.module.LlamaDecoding(JOB)
    llama.fails = True
    with pytest.raises(ModelFileError, match=r"llama.cpp cannot run m.gguf"):
        decoding.read()
