"""`scout chat`: a conversation, turn by turn."""

from dataclasses import dataclass

from .command import Call, load_action, read_choice, takes
from .flags import Auto, Dense, Messages, Model, System
from .inputs import read_messages, with_system
from .settings import PANELS


@dataclass(frozen=True)
class ChatFlags:
    """The flags of `scout chat`, beside the settings."""

    model: Model
    system: System = None
    messages: Messages = None
    dense: Dense = False
    auto: Auto = False


@takes(ChatFlags, *PANELS, without=("n", "logprobs", "prompt_logprobs"), max_tokens=1024)
def chat(call: Call[ChatFlags]) -> None:
    """Chat with a model: it answers each line of the input, and keeps the conversation.

    /help lists the commands of the chat. To send several lines at once, write three quotation marks before and after
    them. Ctrl-C stops an answer. Ctrl-D ends the chat.
    """
    flags = call.flags
    messages = with_system(flags.system, [] if flags.messages is None else read_messages(flags.messages))
    load_action("chat").chat(flags, messages, read_choice(call))
