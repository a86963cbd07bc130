"""The harness's view of the engine: what it is asked, and that the numbers are the model's."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from scoutattention import LLM, ConfigError, PromptError, SamplingParams, ScoutConfig
from scoutattention.engine.scheduler import Sequence
from scoutattention.integrations.lm_eval import ScoutLM, read_options
from scoutattention.models.loader import load

from ..models.dense import prompt_logits

TEXT = "The quick brown fox jumps over the lazy dog, and again over the dog. "
FULL = ScoutConfig(budget=None, block_size=8)


def request(*args):
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def path(tiny_models) -> str:
    return str(tiny_models["llama"])


@pytest.fixture(scope="module")
def lm(path):
    llm = LLM(path, scout=FULL, max_model_len=256)
    yield ScoutLM(llm)
    llm.close()


@pytest.fixture(scope="module")
def dense(path):
    """The log-probabilities of every token of a list but the first, and the likeliest tokens there."""
    decoder = load(path).decoder

    def score(ids):
        with torch.inference_mode():
            logs = prompt_logits(decoder, ids)[:-1].log_softmax(-1)
        return logs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0], logs.argmax(-1)

    return score


def test_continuations_have_the_models_probability(lm, dense):
    ends = ["again", " and so on", "x"]
    results = lm.loglikelihood([request(TEXT, end) for end in ends])
    for end, (score, greedy) in zip(ends, results, strict=True):
        ids = lm.encode(TEXT + end)
        logs, likeliest = dense(ids)
        count = len(ids) - len(lm.encode(TEXT.rstrip(" ")))
        assert score == pytest.approx(float(logs[-count:].sum()), abs=1e-4)
        assert greedy == (likeliest[-count:].tolist() == ids[-count:])


def test_a_greedy_answer_is_seen_to_be_greedy(lm):
    ids = lm.encode(TEXT)
    answer = lm._llm.generate(ids, SamplingParams(max_tokens=6, ignore_eos=True))[0].token_ids
    assert lm.score(ids, answer)[1] is True
    assert lm.score(ids, [*answer[:-1], answer[-1] ^ 1])[1] is False


def test_the_contexts_last_token_is_the_methods_first_step(lm, monkeypatch):
    runner, read = lm._llm.engine.runner, []
    prefill = runner.prefill
    monkeypatch.setattr(runner, "prefill", lambda row, ids: read.append(len(ids)) or prefill(row, ids))
    lm.score([5] * 20, [7, 8])
    lm.score([5], [7])
    assert read == [19, 1]


def test_scores_are_the_methods(path, lm):
    """With little to attend to, the probabilities are others."""
    llm = LLM(path, scout=ScoutConfig().changed(budget=24, block_size=8, true_query_layers=()), device_memory=1 << 16)
    assert ScoutLM(llm).loglikelihood([request(TEXT * 2, "again")]) != lm.loglikelihood([request(TEXT * 2, "again")])
    assert llm.engine.scheduler.running == []
    llm.close()


def test_without_a_context_the_end_token_stands_before_the_text(lm, dense):
    ids = [255, *lm.encode("a fox")]
    logs, _ = dense(ids)
    expected = pytest.approx(float(logs.sum()), abs=1e-4)
    assert lm.loglikelihood([request("", "a fox")])[0][0] == expected
    assert lm.loglikelihood_rolling([request("a fox")])[0] == expected


def test_long_texts_are_scored_in_windows(lm, dense):
    """300 tokens in an engine of 256: the first 255 after the end token, the rest after the 210 tokens before them."""
    ids = lm.encode(TEXT * 5)[:300]
    first, _ = dense([255, *ids[:255]])
    rest, _ = dense(ids[300 - 256 :])
    (total,) = lm.loglikelihood_rolling([request(lm._tokenizer.decode(ids))])
    assert total == pytest.approx(float(first.sum() + rest[-45:].sum()), abs=1e-3)


def test_spaces_belong_to_the_continuation(lm):
    context, continuation = lm.encode_pair("a fox  ", "runs")
    assert lm._tokenizer.decode(context) == "a fox"
    assert lm._tokenizer.decode(continuation) == "  runs"


def test_a_continuation_keeps_at_least_one_token():
    class Merging:
        def encode(self, text, *, add_special_tokens=True):
            return [len(text)] * (2 if len(text) == 3 else 3)

    lm = ScoutLM(SimpleNamespace(tokenizer=Merging(), model="m"))
    assert lm.encode_pair("ab", "c") == ([3], [3])


def test_answers_come_in_order_whatever_their_options(lm):
    short, long = {"until": ["\n"], "max_gen_toks": 4}, {"max_gen_toks": 9}
    prompts = [TEXT, "Who?", TEXT[:20], "A"]
    options = [short, long, short, long]
    answers = lm.generate_until([request(*pair) for pair in zip(prompts, options, strict=True)])
    for prompt, option, answer in zip(prompts, options, answers, strict=True):
        assert answer == lm._llm.generate(prompt, read_options(option))[0].text
    assert len(set(answers)) > 1


def test_results_are_offered_to_the_harness_cache(path):
    told = []
    llm = LLM(path, scout=FULL, max_model_len=256)
    model = ScoutLM(llm)
    model.set_cache_hook(SimpleNamespace(add_partial=lambda kind, args, result: told.append((kind, args, result))))
    text = model.generate_until([request("Who?", {"max_gen_toks": 2})])[0]
    score = model.loglikelihood([request("a", "b")])[0]
    total = model.loglikelihood_rolling([request("ab")])[0]
    llm.close()
    assert told == [
        ("generate_until", ("Who?", {"max_gen_toks": 2}), text),
        ("loglikelihood", ("a", "b"), score),
        ("loglikelihood_rolling", ("ab",), total),
    ]


def test_a_score_waits_for_the_step_that_ended_an_answer(path, monkeypatch):
    """An answer is there before its step has ended; here the step goes on for a while."""
    llm = LLM(path, scout=FULL, max_model_len=256)
    retire, model = llm.engine.scheduler.retire, ScoutLM(llm)
    monkeypatch.setattr(llm.engine.scheduler, "retire", lambda: time.sleep(0.2) or retire())
    append = Sequence.append

    def tell_at_once(self, *args):
        append(self, *args)
        self.reader.tell()

    monkeypatch.setattr(Sequence, "append", tell_at_once)
    model.generate_until([request("Who?", {"max_gen_toks": 1})])
    assert model.loglikelihood([request("a", "b")])[0][0] < 0
    llm.close()


def test_options_of_tasks():
    assert read_options({}) == SamplingParams(max_tokens=256)
    assert read_options({"until": "\n", "max_tokens": 7}) == SamplingParams(max_tokens=7, stop=("\n",))
    assert read_options({"until": ["", "Q:"], "max_gen_toks": 1, "do_sample": False, "temperature": 0.7}) == (
        SamplingParams(max_tokens=1, stop=("Q:",))
    )
    drawn = read_options({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 4})
    assert drawn == SamplingParams(max_tokens=256, temperature=0.7, top_p=0.9, seed=4)
    assert read_options({"top_k": 5}) == SamplingParams(max_tokens=256)
    with pytest.raises(ConfigError, match="generation option top_k is not one of do_sample, max_gen_toks"):
        read_options({"do_sample": True, "temperature": 1.0, "top_k": 5})


def test_too_long_is_refused(lm):
    with pytest.raises(PromptError, match="max_model_len=256"):
        lm.generate_until([request(TEXT * 8, {"max_gen_toks": 2})])
    with pytest.raises(PromptError, match="max_model_len=256"):
        lm.loglikelihood([request(TEXT * 8, "x")])


def test_chat_templates():
    loaded = load("smollm2")
    lm = ScoutLM(SimpleNamespace(tokenizer=loaded.tokenizer, model="smollm2"))
    asked = [{"role": "user", "content": "Who?"}]
    prompt = lm.apply_chat_template(asked)
    assert prompt.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
    begun = [*asked, {"role": "assistant", "content": "It was"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == prompt + "It was"
    assert lm.tokenizer_name == "smollm2"


def test_what_surrounds_texts_is_added_once(lm):
    class Surrounding:
        def encode(self, text, *, add_special_tokens=True):
            ids = [1 if char == "^" else 5 for char in text]
            return [1, *ids] if add_special_tokens else ids

    other = ScoutLM(SimpleNamespace(tokenizer=Surrounding(), model="m"))
    assert other.encode("ab") == other.encode("^ab") == [1, 5, 5]
    assert other.prefix() == 1
    assert lm.prefix() == 255


def test_without_the_harness_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from scoutattention import ConfigError\n"
        "try: import scoutattention.integrations.lm_eval\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ScoutLM needs lm-eval, and lm_eval.api is missing: pip install 'scout-attention[eval]'\n"
