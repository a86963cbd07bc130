"""`scout chat`: a conversation, turn by turn."""

from dataclasses import dataclass

from .command import Call, load_action, takes
from .flags import Messages, Model, System
from .inputs import read_messages, with_system
from .settings import PANELS, read_settings


@dataclass(frozen=True)
class ChatFlags:
    """The flags of `scout chat`, beside the settings."""

    model: Model
    system: System = None
    messages: Messages = None


@takes(ChatFlags, *PANELS, without=("n", "logprobs", "prompt_logprobs"), max_tokens=1024)
def chat(call: Call[ChatFlags]) -> None:
    """Talk with a model, which knows what was said before.

    It answers each line that is typed, or that comes from a pipe.
    /help lists the commands. Text of several lines stands between two lines of three quotation marks. Ctrl-C stops an
    answer, Ctrl-D ends the chat.
    """
    flags = call.flags
    messages = with_system(flags.system, [] if flags.messages is None else read_messages(flags.messages))
    load_action("chat").chat(flags, messages, read_settings(call.settings))
