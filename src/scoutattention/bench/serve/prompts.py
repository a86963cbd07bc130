"""Prompts that are real text, and different from their first words on."""

import random
from collections.abc import Iterator, Sequence

from ...errors import PromptError
from ...eval.text import Text


def prompts(texts: Sequence[Text], characters: int, seed: int) -> Iterator[str]:
    """Endlessly many prompts of so many characters, from random places of the texts.

    Each begins with its own number, so that none is the beginning of another.
    Raises PromptError where the texts have fewer characters.
    """
    whole = "\n".join(text.text for text in texts)
    if len(whole) <= characters:
        names = ", ".join(text.name for text in texts)
        raise PromptError(
            f"the text has {len(whole):,} characters ({names}), and a prompt needs {characters:,}: lower "
            "--prompt-tokens, or give a longer --text"
        )
    chance, number = random.Random(seed), 0
    while True:
        number += 1
        head = f"{chance.randrange(10**6)} is the number of extract {number}.\n"
        place = chance.randrange(len(whole) - characters)
        yield (head + whole[place : place + characters])[:characters]
