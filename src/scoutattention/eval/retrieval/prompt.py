"""Prompts of an exact length: a puzzle's text is as long as it takes."""

from bisect import bisect_right

from ...errors import PromptError
from ...models.text import Tokenizer
from .tasks import Puzzle

LAST_BITS = (" and", " so", " or", "!", ".", " a", "a", "-")
"""What ends a text that whole words cannot make exactly as long as asked, the first that fits."""


def write(tokenizer: Tokenizer, puzzle: Puzzle, words: int, rest: str = "") -> list[int]:
    """The prompt whose text has `words` words and then `rest`; a user's message where there is a chat template."""
    message = f"{puzzle.head}\n\n{puzzle.body(words)}{rest}\n\n{puzzle.question}"
    if tokenizer.has_chat_template:
        prompt = tokenizer.chat([{"role": "user", "content": message}])
        return tokenizer.encode(prompt + puzzle.lead, add_special_tokens=False)
    return tokenizer.encode(f"{message}\n{puzzle.lead}")


def exact(tokenizer: Tokenizer, puzzle: Puzzle, length: int) -> list[int]:
    """The prompt of a puzzle in exactly `length` tokens. Raises PromptError where it cannot be that short."""

    def tokens(words: int) -> int:
        return len(write(tokenizer, puzzle, words))

    least = tokens(puzzle.least)
    if least > length:
        raise PromptError(f"a prompt of {length} tokens is below the {least} that its task needs: raise --lengths")
    words = bisect_right(range(length + 1), length, lo=puzzle.least, key=tokens) - 1
    ids, rest = write(tokenizer, puzzle, words), ""
    while len(ids) < length:
        longer = ((rest + bit, write(tokenizer, puzzle, words, rest + bit)) for bit in LAST_BITS)
        found = next(((text, more) for text, more in longer if len(ids) < len(more) <= length), None)
        if found is None:
            raise PromptError(
                f"the tokenizer makes prompts of {len(ids)} and more than {length} tokens, but none of exactly "
                f"{length}: change --lengths by one"
            )
        rest, ids = found
    return ids
