"""Sequences of another engine in the rows of a store: pieces of prompts and single tokens in one pass."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from scoutattention import LLM, Ablation, CapacityError, EngineConfig, SamplingParams, ScoutConfig
from scoutattention.attention.build import Around, build, build_cache
from scoutattention.cache.memory_plan import plan_memory
from scoutattention.engine.device import make_ops, make_transport, with_kernels
from scoutattention.integrations.rows import Piece, Rows
from scoutattention.models.loader import load
from scoutattention.runtime.workers import Workers

NEW = 12
SCOUT = ScoutConfig(budget=64, block_size=8, calibration=None, ablation=Ablation(min_scout_cosine=-1.0))
KINDS = {
    "slots": (SCOUT, "slots"),
    "budget": (SCOUT, "all"),
    "dense": (ScoutConfig(budget=None, block_size=8, calibration=None), "all"),
}


def prompt(number, length):
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(number)).tolist()


PROMPTS = {"a": prompt(0, 300), "b": prompt(1, 201), "c": prompt(2, 64)}


class Fed:
    """Another engine: it runs the decoder token by token through `Rows`, and draws the likeliest tokens."""

    def __init__(self, path, scout, memory, sequences=2):
        engine = EngineConfig(device="cpu", max_num_seqs=sequences, max_model_len=400, device_memory=memory)
        decoder, device = load(str(path)).decoder, torch.device("cpu")
        workers = Workers(1)
        self.decoder = with_kernels(decoder, engine, device, workers)
        plan = plan_memory(decoder.shape, scout, engine, 1 << 30)
        ops = make_ops(engine, device, workers)
        cache = build_cache(decoder.shape, scout, plan, ops, kv_dtype="auto")
        around = Around(partial(make_transport, ops=ops, workers=workers, scale=decoder.shape.scale))
        built = build(decoder.shape, self.decoder, scout, ops, cache, around)
        self.rows = Rows(plan, built, self.decoder.rope)
        self.tokens = {}

    def admit(self, name):
        self.rows.admit(name, len(PROMPTS[name]))
        self.tokens[name] = list(PROMPTS[name])

    def answer(self, name):
        return self.tokens[name][len(PROMPTS[name]) :]

    @torch.inference_mode()
    def step(self, **counts):
        """One pass over so many tokens of these sequences."""
        known = [self.rows.length(name) for name in counts]
        fed = [self.tokens[name][at : at + n] for at, (name, n) in zip(known, counts.items(), strict=True)]
        bounds = [0, *torch.tensor([len(part) for part in fed]).cumsum(0).tolist()]
        pieces = [Piece(name, start, end - start) for name, (start, end) in zip(counts, pairwise(bounds), strict=True)]
        positions = torch.cat([torch.arange(at, at + len(part)) for at, part in zip(known, fed, strict=True)])
        ids = torch.tensor([token for part in fed for token in part])
        hidden = self.decoder.forward(ids, self.decoder.rope(positions), self.rows.begin(pieces).attend)
        for name, end in zip(counts, bounds[1:], strict=True):
            if self.rows.length(name) == len(self.tokens[name]):
                self.tokens[name].append(int(self.decoder.logits(hidden[end - 1 : end]).argmax()))


@pytest.fixture(scope="module")
def path(tiny_models):
    return tiny_models["qwen3"]


def alone(path, scout, memory):
    llm = LLM(str(path), scout=scout, device="cpu", device_memory=memory, max_num_seqs=1, max_model_len=400, workers=1)
    params = SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)
    return {name: list(llm.generate([ids], params)[0].token_ids) for name, ids in PROMPTS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_come_and_go_are_answered_as_alone(path, kind):
    fed, expected = Fed(path, *KINDS[kind]), alone(path, *KINDS[kind])
    fed.admit("a")
    fed.step(a=128)
    fed.admit("b")
    fed.step(b=100, a=128)  # two prompts in pieces
    fed.step(a=44, b=100)
    fed.step(b=1, a=1)  # one of them is the last token of a prompt
    for _ in range(NEW // 2):
        fed.step(a=1, b=1)
    while len(fed.answer("a")) < NEW:
        fed.step(a=1)
    fed.rows.release("a")
    fed.admit("c")
    fed.step(b=1, c=40)  # a prompt takes the row of another sequence, while one decodes
    fed.step(c=24, b=1)
    while min(len(fed.answer(name)) for name in "bc") < NEW:
        fed.step(c=1, b=1)
    for name, answer in expected.items():
        assert fed.answer(name)[:NEW] == answer
    assert (fed.rows.stats.far_blocks > 0) == (kind == "slots")


def test_two_prompts_that_end_in_one_pass_have_their_own_trials(path):
    fed, expected = Fed(path, *KINDS["slots"]), alone(path, *KINDS["slots"])
    fed.admit("a")
    fed.admit("b")
    fed.step(a=300, b=201)
    while len(fed.answer("a")) < NEW:
        fed.step(a=1, b=1)
    assert fed.answer("a") == expected["a"]
    assert fed.answer("b")[:NEW] == expected["b"]


def test_what_does_not_fit_is_refused(path):
    fed = Fed(path, *KINDS["dense"], sequences=1)
    fed.admit("c")
    with pytest.raises(CapacityError, match="1 sequences run already"):
        fed.admit("a")
    fed.rows.release("c")
    fed.rows.release("c")  # of a name without a row: nothing
    with pytest.raises(CapacityError, match="401 tokens is longer than max_model_len=400"):
        fed.rows.admit("long", 401)
    fed.admit("c")
    with pytest.raises(CapacityError, match="a prompt of 64 tokens gets 65"):
        fed.rows.begin([Piece("c", 0, 65)])
    fed.step(c=64)
    with pytest.raises(CapacityError, match="2 tokens at once behind its prompt"):
        fed.rows.begin([Piece("c", 0, 2)])
