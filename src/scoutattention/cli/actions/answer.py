"""An answer as it is made, for the commands that print one."""

from collections.abc import Generator
from contextlib import ExitStack

from ...config import SamplingParams
from ...engine.answer import Chunk
from ...engine.llm import LLM
from ..inputs import Message
from ..output import progress


def chunks(
    llm: LLM, prompt: str | list[Message], params: SamplingParams, *, chat: bool | None = None
) -> Generator[Chunk]:
    """The pieces of an answer, with a bar while the prompt is read.

    prompt: a text, which `chat` puts into the chat template, or a conversation.   Raises what `LLM.stream` raises.
    """
    with ExitStack() as reading:
        watch = reading.enter_context(progress(" tokens"))

        def on_prompt(done: int, total: int) -> None:
            watch("Reading the prompt", done, total)

        for chunk in llm.stream(prompt, params, chat=chat, on_prompt=on_prompt):
            reading.close()
            yield chunk
