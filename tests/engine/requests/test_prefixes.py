"""A prompt that begins like one that was read is read from there on, and answered as if it were read whole."""

from itertools import pairwise

import pytest
import torch

from scoutattention import LLM, CapacityError, EngineConfig, KernelError, SamplingParams, ScoutConfig
from scoutattention.attention.prompt import prefill, trial
from scoutattention.engine.engine import Engine
from scoutattention.engine.prefix import cache
from scoutattention.engine.scheduler import Sequence
from scoutattention.models.loader import load

from ...models import families
from ...runtime.test_ranks import on_ranks
from ...tiny import save
from .test_users import settled

DOCUMENT = [(5 * i * i + 11 * i) % 89 for i in range(300)]
PROMPTS = [[*DOCUMENT, 1, 2, 3], DOCUMENT + [7] * 9, DOCUMENT, DOCUMENT + [7] * 40, DOCUMENT[:160] + [4] * 9]
WITHIN = ScoutConfig().changed(budget=400, block_size=8, true_query_layers=(0,))
BEYOND = ScoutConfig(budget=40, block_size=8)
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
MEMORIES = {
    "one": {},
    "slots": {"device_memory": "slots"},
    "few slots": {"device_memory": 15 * 6144, "max_num_seqs": 1},
    "packed": {"device_memory": "slots", "kv_dtype": "int8"},
    "packed pages on the device": {"kv_dtype": "int4"},
}


@pytest.fixture(params=MEMORIES)
def memory(request) -> dict:
    chosen: dict = MEMORIES[request.param]
    return chosen


@pytest.fixture(autouse=True)
def one_voter(monkeypatch):
    """Prompts of a few blocks are found but for their last token."""
    monkeypatch.setattr(cache, "VOTERS", 1)


@pytest.fixture
def fitted(monkeypatch):
    """Corrections are fitted on short prompts too."""
    monkeypatch.setattr(trial, "LEAST_FITTED", 50)


def answers(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [llm.generate(prompt, PARAMS)[0].token_ids for prompt in prompts]


def assert_free(llm: LLM) -> None:
    settled(llm)
    store = llm.engine.store
    assert store.pages.available() == store.pages.pool.capacity
    store.pages.forget()
    assert store.pages.pool.available == store.pages.pool.capacity
    if store.slots is not None:
        assert store.slots.pool.available == store.slots.pool.capacity


@pytest.mark.parametrize("fits", [False, True])
def test_a_prompt_that_comes_again_is_answered_as_it_was(tiny_models, monkeypatch, fits):
    """Far blocks and all: its last tokens choose the same first blocks of slots."""
    monkeypatch.setattr(cache, "VOTERS", prefill.VOTERS)
    memory = {} if fits else {"device_memory": "slots"}
    with LLM(str(tiny_models["llama"]), scout=BEYOND, **memory) as llm:
        first, again = (llm.generate(DOCUMENT + [7] * 9, PARAMS)[0] for _ in range(2))
        assert (first.cached_tokens, again.cached_tokens) == (0, 272)
        assert again.token_ids == first.token_ids
        assert fits or llm.stats().far_blocks > 0


def test_answers_are_those_of_prompts_that_are_read_whole(tiny_models, memory):
    """Where all blocks are chosen. Packed pages give what was packed, and so they answer nearly the same."""
    path = str(tiny_models["llama"])
    with LLM(path, scout=WITHIN, prefix_cache=False, **memory) as llm:
        expected = answers(llm, PROMPTS)
        assert llm.stats().cached_tokens == 0
    with LLM(path, scout=WITHIN, **memory) as llm:
        outs = [llm.generate(prompt, PARAMS)[0] for prompt in PROMPTS]
        assert [out.cached_tokens for out in outs] == [0, 296, 296, 304, 160]
        assert llm.stats().cached_tokens == 1056
        assert "1,056 of them kept" in str(llm.stats())
        if "kv_dtype" not in memory:
            assert [out.token_ids for out in outs] == expected
        assert_free(llm)


def test_full_attention_finds_prompts_too(tiny_models):
    path = str(tiny_models["qwen3"])
    dense = ScoutConfig(budget=None, block_size=8)
    with LLM(path, scout=dense, prefix_cache=False) as llm:
        expected = answers(llm, PROMPTS)
    with LLM(path, scout=dense) as llm:
        assert answers(llm, PROMPTS) == expected
        assert llm.stats().cached_tokens == 1056


def test_only_the_rest_is_read(tiny_models, monkeypatch):
    with LLM(str(tiny_models["llama"]), scout=WITHIN) as llm:
        lengths = []
        read = llm.engine.runner.decoder.read

        def counted(token_ids, *others):
            lengths.append(len(token_ids))
            return read(token_ids, *others)

        monkeypatch.setattr(llm.engine.runner.decoder, "read", counted)
        done = []
        monkeypatch.setattr(Sequence, "note_read", lambda sequence, tokens: done.append(tokens))
        for prompt in PROMPTS[:2]:
            llm.generate(prompt, SamplingParams(max_tokens=1))
        assert lengths == [303, 13]
        assert [tokens for before, tokens in pairwise(done) if tokens != before][-3:] == [300, 304, 309]


def test_prompts_that_arrive_together_share_what_the_first_one_reads(tiny_models, memory):
    with LLM(str(tiny_models["llama"]), scout=WITHIN, **memory) as llm:
        params = SamplingParams(max_tokens=9, temperature=1.0, seed=3, n=3)
        first, *others = llm.generate(DOCUMENT, params)
        assert [first.cached_tokens, *(other.cached_tokens for other in others)] == [0, 296, 296]
        assert_free(llm)


def test_what_a_prompt_decided_goes_to_those_that_begin_alike(tiny_models, fitted):
    """Its bases, its scouts' corrections, and in which layers they are trusted; digests are not made again."""
    with LLM(str(tiny_models["qwen3"]), scout=BEYOND, device_memory="slots") as llm:
        store, predictor = llm.engine.store, llm.engine.runner.attention.parts.predictor
        llm.generate(PROMPTS[0], SamplingParams(max_tokens=1))
        settled(llm)
        (lineage,) = store.pages.prefixes._lineages
        assert sum(bool(state.any()) for state in lineage.state) == 5, "there is no stored correction to be used"
        assert not predictor.left.any()
        begin(llm, PROMPTS[1])
        for state, kept in zip(store._of_prompts, lineage.state, strict=True):
            assert torch.equal(state[:, 0], kept)


def begin(llm: LLM, prompt: list[int]) -> Sequence:
    """Read a prompt in this thread."""
    sequence = Sequence(0, prompt, PARAMS, len(prompt) + 12, llm.tokenizer)
    llm.engine.add(sequence)
    while not sequence.output_ids:
        llm.engine.step()
    return sequence


def test_the_first_residents_are_chosen_among_all_blocks(tiny_models):
    """The blocks that are read again decide with the same queries as those that are not."""
    found = []
    for caching in (False, True):
        with LLM(str(tiny_models["llama"]), scout=WITHIN, device_memory=15 * 6144, prefix_cache=caching) as llm:
            llm.generate(PROMPTS[0], SamplingParams(max_tokens=1))
            settled(llm)
            begin(llm, DOCUMENT + [7] * 40)
            found.append(llm.engine.store.slots.interest[:, 0].clone())
    torch.testing.assert_close(found[0], found[1])
    assert found[0][..., :37].any()


@pytest.mark.parametrize(("scout", "cached"), [(WITHIN, 48), (BEYOND, 0)])
def test_a_small_part_of_a_prompt_is_found_only_where_bases_do_not_matter(tiny_models, scout, cached):
    with LLM(str(tiny_models["llama"]), scout=scout) as llm:
        llm.generate(DOCUMENT, PARAMS)
        other = DOCUMENT[:50] + [9] * 200
        assert llm.generate(other, PARAMS)[0].cached_tokens == cached
        assert llm.generate(DOCUMENT, PARAMS)[0].cached_tokens == 296
        assert llm.generate([*other, 3], PARAMS)[0].cached_tokens == 248
        assert llm.generate(DOCUMENT[:50] + [8] * 100, PARAMS)[0].cached_tokens == 48, "a third of it"


def test_a_prompt_that_outgrew_what_its_bases_were_made_from_is_read_anew(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=BEYOND) as llm:
        lengths = (104, 150, 152, 160, 230, 300)
        cached = [llm.generate(DOCUMENT[:length], PARAMS)[0].cached_tokens for length in lengths]
        assert cached == [0, 104, 144, 0, 160, 0]


def test_another_salt_finds_nothing(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=WITHIN) as llm:
        cached = [
            llm.generate(DOCUMENT, SamplingParams(max_tokens=1, cache_salt=salt))[0].cached_tokens
            for salt in ("", "one user", "\ud800", "one user", "")
        ]
        assert cached == [0, 0, 0, 296, 296]


def test_positions_that_depend_on_the_length_are_not_found(tmp_path):
    """With dynamic scaling, keys of a prompt beyond the model's own length are those of its length alone."""
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    path = str(save(families.make("llama", rope_parameters=scaling, max_position_embeddings=250), tmp_path / "model"))
    prompts = [DOCUMENT[:length] for length in (100, 200, 260, 280, 280)]
    with LLM(path, scout=WITHIN, prefix_cache=False, max_model_len=250) as llm:
        assert llm.engine.plan.lineages == 0
    longer = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 250}}
    with LLM(path, scout=WITHIN, prefix_cache=False, **longer) as llm:
        expected = answers(llm, prompts)
    with LLM(path, scout=WITHIN, **longer) as llm:
        outs = [llm.generate(prompt, PARAMS)[0] for prompt in prompts]
        assert [out.cached_tokens for out in outs] == [0, 96, 0, 0, 272]
        assert [out.token_ids for out in outs] == expected


def test_kept_prompts_make_room_for_others(tiny_models):
    """A pool of 50 blocks: a prompt of 40 leaves when another one comes, and neither waits."""
    with LLM(str(tiny_models["llama"]), scout=WITHIN, host_memory=50 * 6144) as llm:
        assert llm.engine.plan.pages == 50
        other = [(token + 1) % 90 for token in DOCUMENT]
        cached = [llm.generate(prompt, PARAMS)[0].cached_tokens for prompt in (DOCUMENT, DOCUMENT, other, DOCUMENT)]
        assert cached[:3] == [0, 296, 0]
        assert 0 < cached[3] < 296, "the first blocks are the last to go"
        with pytest.raises(CapacityError, match="the host pool has 50"):
            llm.generate(DOCUMENT * 2, PARAMS)
        assert_free(llm)


def test_a_prompt_that_fails_leaves_what_it_shares(tiny_models, monkeypatch, memory):
    with LLM(str(tiny_models["llama"]), scout=WITHIN, **memory) as llm:
        expected = answers(llm, PROMPTS[:2])

        def failing(*_: object, **__: object) -> None:
            raise KernelError("the kernel has failed")

        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.runner.decoder, "logits", failing)
            with pytest.raises(KernelError):
                llm.generate(PROMPTS[1], PARAMS)
        assert llm.generate(PROMPTS[1], PARAMS)[0].token_ids == expected[1]
        stream = llm.stream(PROMPTS[1], PARAMS)
        next(stream)
        stream.close()
        assert llm.engine.store.pages.prefixes.num_lineages == 1
        assert_free(llm)


def test_keys_that_are_not_finite_are_not_kept(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=WITHIN) as llm:
        with torch.inference_mode():
            llm.engine.runner.decoder.weights.embedding[99] = torch.nan
        llm.generate([[*DOCUMENT, 99], [1]], PARAMS)
        assert llm.engine.store.pages.prefixes.num_lineages == 0


def test_two_ranks_find_the_same(tiny_models, tmp_path):
    path, scout = str(tiny_models["qwen3"]), BEYOND.changed(digest="minmax")
    options = {"device_memory": "slots", "host_memory": 120 * 6144, "max_num_seqs": 2}
    prompts = [*PROMPTS, [(token + 1) % 90 for token in DOCUMENT], *PROMPTS]

    def found(engine: Engine, tokenizer) -> list[tuple[int, list[int]]]:
        requests = [Sequence(i, ids, PARAMS, len(ids) + 12, tokenizer) for i, ids in enumerate(prompts)]
        for request in requests:
            engine.add(request)
        while engine.busy:
            engine.step()
        engine.close()
        return [(request.prefix.tokens, request.output_ids) for request in requests]

    with LLM(path, scout=scout, **options) as llm:
        expected = found(llm.engine, llm.tokenizer)
    assert any(cached for cached, _ in expected)

    def work(ranks):
        model = load(path, ranks=ranks)
        return found(Engine(model.decoder, scout, EngineConfig(tensor_parallel_size=2, **options)), model.tokenizer)

    assert on_ranks(2, tmp_path, work) == [expected, expected]
