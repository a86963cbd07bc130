"""An answer as it is made, for the commands that print one."""

from collections.abc import Generator
from contextlib import ExitStack

from ...config import SamplingParams
from ...engine.llm import LLM, Chunk
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

        if isinstance(prompt, str):
            stream = llm.stream(prompt, params, chat=chat, on_prompt=on_prompt)
        else:
            stream = llm.stream(_encoded(llm, prompt), params, on_prompt=on_prompt)
        for chunk in stream:
            reading.close()
            yield chunk


def _encoded(llm: LLM, messages: list[Message]) -> list[int]:
    """The tokens of a conversation. Raises PromptError where the model's template refuses it, or there is none."""
    return llm.tokenizer.encode(llm.tokenizer.chat(messages), add_special_tokens=False)
