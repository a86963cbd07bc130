"""Retrieval tasks in the manner of RULER (arXiv 2404.06654): something to find in a text of any length.

single       one code among plain prose
multikey     one code among four things' codes
multivalue   four codes of one thing
multiquery   four things' codes, all asked for
variables    a chain of assignments: which variables have the value that the first was given
common       a list of words: the ten that appear most
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from .words import ADJECTIVES, NOUNS, PEOPLE, PLACES, VERBS, prose

KEYS = 4
COMMON_WORDS = 10


@dataclass(frozen=True)
class Puzzle:
    """Something to find in a text that can be as long as one likes.

    body: the text, about as many words long as its argument.   least: words below which there is nothing to find.
    head, question: what is said before and after the text.   lead: the beginning of the answer, given to the model.
    answers: what the rest of the answer should contain.   max_tokens: the rest's longest length.
    """

    body: Callable[[int], str]
    head: str
    question: str
    lead: str
    answers: tuple[str, ...]
    max_tokens: int
    least: int = 0


Task = Callable[[str, float], Puzzle]
"""task(seed, depth): depth from 0, the beginning of the text, to 1, its end."""


def hide(seed: str, needles: Sequence[tuple[float, str]], count: int) -> str:
    """`count` words of prose, with each needle (depth, sentence) between the two sentences nearest after its depth."""
    words = prose(seed, count)
    ends = [0, *(i for i, word in enumerate(words, 1) if word.endswith("."))]
    pieces: list[str] = []
    start = 0
    for depth, sentence in sorted(needles, key=lambda needle: needle[0]):
        end = ends[min(bisect_left(ends, round(depth * count)), len(ends) - 1)]
        pieces += [*words[start:end], sentence]
        start = end
    return " ".join([*pieces, *words[start:]])


def around(depth: float, count: int) -> list[float]:
    """Depths of `count` needles at equal distances, of which the first is at `depth`; beyond the end they go round."""
    depths = [depth + i / count for i in range(count)]
    return [d - 1 if d > 1 else d for d in depths]


def single(seed: str, depth: float) -> Puzzle:
    """One code."""
    return _one_code(seed, depth, 1)


def multikey(seed: str, depth: float) -> Puzzle:
    """One code, at `depth`; three other things' codes elsewhere."""
    return _one_code(seed, depth, KEYS)


def multivalue(seed: str, depth: float) -> Puzzle:
    """Four codes of one thing, the first at `depth`."""
    random = Random(seed)
    thing, codes = _things(random, 1)[0], _codes(random, KEYS)
    needles = [(d, f"A secret code of the {thing} is {c}.") for d, c in zip(around(depth, KEYS), codes, strict=True)]
    return Puzzle(
        body=partial(hide, seed, needles),
        head=f"The text below states {KEYS} secret codes of the {thing}. Remember them.",
        question=f"What are the {KEYS} secret codes of the {thing}? Answer with numbers only.",
        lead=f"The {KEYS} secret codes of the {thing} are the numbers",
        answers=codes,
        max_tokens=80,
    )


def multiquery(seed: str, depth: float) -> Puzzle:
    """Four things' codes, the first at `depth`."""
    random = Random(seed)
    things, codes = _things(random, KEYS), _codes(random, KEYS)
    facts = [_fact(thing, code) for thing, code in zip(things, codes, strict=True)]
    listed = ", ".join(f"the {thing}" for thing in things)
    return Puzzle(
        body=partial(hide, seed, list(zip(around(depth, KEYS), facts, strict=True))),
        head="The text below states the secret codes of some things. Remember them.",
        question=f"What are the secret codes of these things: {listed}?",
        lead=f"The secret code of the {things[0]} is",
        answers=codes,
        max_tokens=120,
    )


def variables(seed: str, depth: float) -> Puzzle:
    """A chain of five assignments, in their order; one of them is at `depth`."""
    random = Random(seed)
    names = ["".join(random.sample(ascii_uppercase, 5)) for _ in range(KEYS + 1)]
    value = random.randint(10_000, 99_999)
    lines = [f"VAR {names[0]} = {value}.", *(f"VAR {new} = VAR {old}." for old, new in pairwise(names))]
    needles = list(zip(sorted(around(depth, len(lines))), lines, strict=True))
    return Puzzle(
        body=partial(hide, seed, needles),
        head="The text below assigns values to variables. Follow the assignments.",
        question=f"Which {len(names)} variables have the value {value}, directly or from another variable?",
        lead=f"The {len(names)} variables with the value {value} are VAR",
        answers=tuple(names),
        max_tokens=60,
    )


def common(seed: str, _depth: float) -> Puzzle:
    """A numbered list of words; ten of them make up its half."""
    pool = [*NOUNS, *ADJECTIVES, *PEOPLE, *VERBS, *PLACES]
    Random(seed).shuffle(pool)
    often, seldom = pool[:COMMON_WORDS], pool[COMMON_WORDS:]

    def body(count: int) -> str:
        half = count // 2
        words = [often[i % len(often)] for i in range(half)] + [seldom[i % len(seldom)] for i in range(count - half)]
        Random(seed).shuffle(words)
        return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    return Puzzle(
        body=body,
        head=f"Below is a numbered list of words. {COMMON_WORDS} of them appear much more often than the others.",
        question=f"What are the {COMMON_WORDS} most common words of the list?",
        lead=f"The {COMMON_WORDS} most common words of the list are: 1.",
        answers=tuple(often),
        max_tokens=80,
        least=6 * COMMON_WORDS,
    )


TASKS: dict[str, Task] = {
    "single": single,
    "multikey": multikey,
    "multivalue": multivalue,
    "multiquery": multiquery,
    "variables": variables,
    "common": common,
}
SPREAD = ("common",)
"""Tasks whose answer is spread over the whole text, at no depth."""


def _one_code(seed: str, depth: float, keys: int) -> Puzzle:
    random = Random(seed)
    things, codes = _things(random, keys), _codes(random, keys)
    depths = [depth, *(random.random() for _ in range(keys - 1))]
    facts = [_fact(thing, code) for thing, code in zip(things, codes, strict=True)]
    return Puzzle(
        body=partial(hide, seed, list(zip(depths, facts, strict=True))),
        head="The text below states the secret code of something. Remember it.",
        question=f"What is the secret code of the {things[0]}?",
        lead=f"The secret code of the {things[0]} is",
        answers=codes[:1],
        max_tokens=24,
    )


def _things(random: Random, count: int) -> list[str]:
    return [f"{a} {b}" for a, b in zip(random.sample(ADJECTIVES, count), random.sample(NOUNS, count), strict=True)]


def _codes(random: Random, count: int) -> tuple[str, ...]:
    return tuple(str(code) for code in random.sample(range(1_000_000, 10_000_000), count))


def _fact(thing: str, code: str) -> str:
    return f"The secret code of the {thing} is {code}."
