"""What retrieval prompts say, where, and in how many tokens."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoutattention import PromptError
from scoutattention.eval.retrieval.prompt import exact, write
from scoutattention.eval.retrieval.tasks import TASKS, around, common, hide, multikey, single
from scoutattention.eval.retrieval.words import prose
from scoutattention.models.loader import load
from scoutattention.models.text import Tokenizer

NEEDLE = "The needle is 17."
HIDDEN = sorted(TASKS.keys() - {"common"})


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2").tokenizer


@pytest.fixture(scope="module")
def byte_level(tiny_models) -> Tokenizer:
    return Tokenizer.from_directory(tiny_models["llama"])


def test_prose_is_endless_repeatable_and_made_of_sentences():
    words = prose("a", 5000)
    assert len(words) == 5000
    assert words[:300] == prose("a", 300) != prose("b", 300)
    sentences = " ".join(words).split(". ")
    assert max(len(sentence.split()) for sentence in sentences) <= 15
    assert all(sentence[0].isupper() for sentence in sentences)
    assert len(set(sentences)) > 0.99 * len(sentences)


@given(st.floats(0, 1), st.integers(50, 2000))
def test_a_needle_is_where_it_should_be(depth, count):
    text = hide("s", [(depth, NEEDLE)], count)
    before, after = text.split(NEEDLE)
    assert (before + after).split() == prose("s", count)
    assert before == "" or before.endswith(". ")
    assert abs(len(before.split()) - depth * count) <= 15


def test_needles_keep_their_order_and_may_share_a_place():
    text = hide("s", [(0.5, "Second."), (0.1, "First."), (0.5, "Third.")], 200)
    assert re.search(r"First\..*Second\. Third\.", text)
    assert hide("s", [(0.9, "A."), (0.2, "B.")], 0) == "B. A."


def test_needles_go_round():
    assert around(0.0, 4) == [0.0, 0.25, 0.5, 0.75]
    assert around(1.0, 4) == [1.0, 0.25, 0.5, 0.75]
    assert around(1.0, 1) == [1.0]


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_is_in_the_text_and_not_in_the_question(task):
    puzzle = TASKS[task]("seed", 0.5)
    body = puzzle.body(400)
    assert len(set(puzzle.answers)) == len(puzzle.answers)
    for expected in puzzle.answers:
        assert expected in body
        assert expected not in puzzle.head + puzzle.question + puzzle.lead


@pytest.mark.parametrize("task", HIDDEN)
def test_only_the_needles_hold_the_answers(task):
    puzzle = TASKS[task]("seed", 0.5)
    sentences = re.findall(r"[^.]*(?:secret code|VAR)[^.]*\.", puzzle.body(400))
    assert len(sentences) == {"single": 1, "variables": 5}.get(task, 4)
    for expected in puzzle.answers:
        assert any(expected in sentence for sentence in sentences)


def test_the_question_tells_the_codes_apart():
    puzzle = multikey("seed", 0.3)
    thing = re.search(r"the secret code of the (.+)\?", puzzle.question)[1]
    codes = dict(re.findall(r"The secret code of the ([a-z ]+) is (\d+)\.", puzzle.body(300)))
    assert len(codes) == 4
    assert puzzle.answers == (codes[thing],)


def test_variables_are_a_chain():
    puzzle = TASKS["variables"]("seed", 0.7)
    value = re.search(r"value (\d+)", puzzle.question)[1]
    links = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\.", puzzle.body(300))
    assert [name for name, _ in links] == list(puzzle.answers)
    assert [source for _, source in links] == [value, *puzzle.answers[:-1]]


@pytest.mark.parametrize("count", [60, 400, 3001])
def test_the_common_words_are_the_most_common(count):
    puzzle = common("seed", 0.0)
    words = re.findall(r"\d+\. (\w+)", puzzle.body(count))
    assert len(words) == count
    ranked = Counter(words).most_common()
    assert {word for word, _ in ranked[:10]} == set(puzzle.answers)
    assert ranked[9][1] >= 3 * ranked[10][1]


def test_other_seeds_make_other_prompts():
    assert single("1", 0.5).answers == single("1", 0.5).answers
    assert len({single(str(seed), 0.5).answers for seed in range(20)}) == 20


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [640, 1013])
def test_prompts_have_exactly_the_length(smollm2, task, length):
    ids = exact(smollm2, TASKS[task]("seed", 0.5), length)
    assert len(ids) == length
    assert "and and and and and and" not in smollm2.decode(ids)  # whole words, and only then what fills a gap


@pytest.mark.parametrize("length", range(900, 905))
def test_prompts_have_exactly_the_length_in_bytes_too(byte_level, length):
    assert len(exact(byte_level, single("seed", 0.5), length)) == length


def test_the_chat_template_is_used_where_there_is_one(smollm2, byte_level):
    puzzle = single("seed", 0.5)
    text = smollm2._backend.decode(write(smollm2, puzzle, 50), skip_special_tokens=False)
    assert text.endswith(f"{puzzle.question}<|im_end|>\n<|im_start|>assistant\n{puzzle.lead}")
    assert byte_level.decode(write(byte_level, puzzle, 50)).endswith(f"{puzzle.question}\n{puzzle.lead}")


def test_a_length_below_the_question_is_refused(smollm2):
    with pytest.raises(
        PromptError, match=r"a prompt of 40 tokens is below the \d+ that its task needs: raise --lengths"
    ):
        exact(smollm2, single("seed", 0.5), 40)


class Pairs:
    """A tokenizer of two characters a token, padded: no odd step is possible with two-character bits only."""

    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        return [0] * (2 * len(text))


def test_a_length_that_the_tokenizer_cannot_make_is_refused():
    with pytest.raises(PromptError, match="none of exactly 901: change --lengths by one"):
        exact(Pairs(), single("seed", 0.5), 901)
