"""Prompts that are real text, and different from their first words on."""

import random
from collections.abc import Iterator

from ...errors import PromptError


def prompts(text: str, characters: int, seed: int) -> Iterator[str]:
    """Endlessly many prompts of so many characters, from random places of a text.

    Each begins with its own number, so that none is the beginning of another.
    Raises PromptError where the text has fewer characters.
    """
    if len(text) <= characters:
        raise PromptError(
            f"the text has {len(text):,} characters, and a prompt needs {characters:,}: lower --prompt-tokens, or give "
            "a longer --text"
        )
    chance, number = random.Random(seed), 0
    while True:
        number += 1
        head = f"{chance.randrange(10**6)} is the number of extract {number}.\n"
        place = chance.randrange(len(text) - characters)
        yield (head + text[place : place + characters])[:characters]
