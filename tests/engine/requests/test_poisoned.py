"""One bad sequence of a batch ends with an error of its own; the others have the answers that each has alone."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoutattention import LLM, KernelError, ModelError, SamplingParams, ScoutConfig, ScoutError
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.models.text import TextStream

POISON = 99
"""A token whose embedding is not finite; it is in no answer."""
SCOUT = ScoutConfig(budget=40, block_size=8)
MEMORIES = {"one": {}, "slots": {"device_memory": "slots"}, "packed": {"device_memory": "slots", "kv_dtype": "int8"}}


def poisoned(llm: LLM) -> LLM:
    """The same, whose embedding is poisoned, as its memory might be; its head never answers with that token."""
    weights = llm.engine.runner.decoder.weights
    with torch.inference_mode():
        weights.embedding[POISON] = torch.nan
        weights.head[POISON] = 0
    return llm


@pytest.fixture(scope="module", params=MEMORIES)
def llm(request, tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT, max_num_seqs=4, **MEMORIES[request.param]) as made:
        yield poisoned(made)


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(90) for _ in range(rng.randint(3, 60))] for _ in range(8)]


def params(number: int) -> SamplingParams:
    penalty = 1.2 if number % 3 == 0 else 1.0
    return SamplingParams(
        max_tokens=6, ignore_eos=True, temperature=float(number % 2), seed=number, repetition_penalty=penalty
    )


def check(llm: LLM, seed: int, poison, message: str, kind: type[ScoutError]) -> None:
    """A batch of 8 with one bad one: `poison(prompts, place)` makes it, and gives back what undoes it."""
    batch, each = prompts(seed), [params(number) for number in range(8)]
    alone = [llm.generate(prompt, one)[0] for prompt, one in zip(batch, each, strict=True)]
    place = random.Random(seed).randrange(8)
    undo = poison(batch, place)
    outs = llm.generate(batch, each)
    bad = outs.pop(place)
    alone.pop(place)
    assert [out.token_ids for out in outs] == [out.token_ids for out in alone]
    assert [out.text for out in outs] == [out.text for out in alone]
    assert (bad.finish_reason, type(bad.error)) == ("error", kind)
    with pytest.raises(kind, match=message):
        llm.generate(batch[place], each[place])
    with pytest.raises(kind, match=message):
        list(llm.stream(batch[place], each[place]))
    undo()
    store = llm.engine.store
    assert store.pages.available() == store.pages.pool.capacity
    assert llm.generate(prompts(seed)[place], each[place])[0].error is None


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_logits_that_are_not_finite(llm, seed):
    def poison(batch, place):
        batch[place].insert(seed % 3, POISON)
        return lambda: None

    check(llm, seed, poison, "the logits of this answer are not finite in float32", ModelError)


def test_logits_that_are_not_finite_late_in_an_answer(llm, monkeypatch):
    """What was said before stays."""
    monkeypatch.setattr(llm.engine.runner.decoder, "logits", spoilt(llm.engine.runner.decoder.logits, 5))
    out, other = llm.generate([[1, 2, 3], [4, 5]], params(0))
    assert (len(out.token_ids), out.finish_reason, len(other.token_ids)) == (4, "error", 6)


def spoilt(logits, call: int):
    """Of the first sequence, in one call."""
    calls = []

    def changed(hidden):
        calls.append(None)
        found = logits(hidden).clone()
        if len(calls) == call + 1:
            found[0, 3] = torch.inf
        return found

    return changed


def test_a_kernel_that_fails_while_a_prompt_is_read(llm, monkeypatch):
    read = llm.engine.runner.read

    def poison(batch, place):
        def failing(row, ids, **options):
            reading = read(row, ids, **options)
            yield next(reading)
            if ids == batch[place]:
                raise KernelError("the kernel has failed")
            return (yield from reading)

        patch = monkeypatch.context()
        patch.__enter__().setattr(llm.engine.runner, "read", failing)
        return lambda: patch.__exit__(None, None, None)

    check(llm, 5, poison, "the kernel has failed", KernelError)


def test_text_that_cannot_be_made(llm, monkeypatch):
    step = TextStream.step

    def poison(batch, place):
        bad = llm.generate(batch[place], params(place))[0].token_ids

        def failing(stream, token):
            ids = vars(stream).setdefault("told", [])
            ids.append(token)
            if ids == bad[: len(ids)] and len(ids) > 4:
                raise ModelError("no text")
            return step(stream, token)

        patch = monkeypatch.context()
        patch.__enter__().setattr(TextStream, "step", failing)
        return lambda: patch.__exit__(None, None, None)

    check(llm, 6, poison, "no text", ModelError)


def test_a_step_that_fails_ends_who_was_in_it_and_no_other(llm, monkeypatch):
    decode, calls = llm.engine.runner.decode, []

    def failing(*args, **options):
        calls.append(None)
        if len(calls) == 3:
            raise KernelError("the step has failed")
        return decode(*args, **options)

    expected = llm.generate([1, 2], params(0))[0].token_ids
    monkeypatch.setattr(llm.engine.runner, "decode", failing)
    outs = llm.generate([[1, 2]] * 5, params(0))
    assert [(out.finish_reason, len(out.token_ids)) for out in outs] == [("error", 3)] * 4 + [("length", 6)]
    assert outs[4].token_ids == expected


def test_known_tokens_whose_logits_are_not_finite(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=SCOUT) as llm, pytest.raises(ModelError, match="not finite in float32"):
        list(teacher_forced(poisoned(llm).engine, [1, 2, POISON, 3, 4], 2))


def test_float16_that_overflows_names_the_dtypes_that_do_not(tiny_models, tmp_path):
    for file in tiny_models["qwen2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"] *= 1e5
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for temperature in (0.0, 0.7):
        few = SamplingParams(max_tokens=4, ignore_eos=True, temperature=temperature)
        message = r"not finite in float16: set dtype .* to float32 or bfloat16"
        with LLM(str(tmp_path), dtype="float16") as llm, pytest.raises(ModelError, match=message):
            llm.generate([[1, 2, 3, 4]], few)
        with LLM(str(tmp_path), dtype="bfloat16") as llm:
            assert len(llm.generate([[1, 2, 3, 4]], few)[0].token_ids) == 4
