"""What `scout chat` does: it reads turns, answers them, and does what the commands between them say."""

import json
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

import typer

from ...config.fields import counted
from ...engine.llm import LLM
from ...errors import CapacityError, ConfigError, PromptError
from ..chat import ChatFlags
from ..inputs import Message, read_line
from ..output import loading, show, write_file
from ..settings import Settings
from ..shell import go_on, tell
from .answer import chunks
from .generate import chosen, stats_table

with suppress(ImportError):  # Python was built without it
    import readline  # noqa: F401  # `input` edits lines with it

QUOTES = '"""'
HELP = """\
/help            show these lines
/system [TEXT]   show the system prompt, or set it
/clear           forget all turns
/undo            forget the last turn and its answer
/regen           answer the last turn once more
/save FILE       write the conversation as JSON, which --messages reads
/stats           show the numbers of this chat
/exit            end, as Ctrl-D does
Text of several lines begins and ends with \"\"\". Ctrl-C stops an answer."""
OTHER_NAMES = {"/?": "/help", "/quit": "/exit", "/bye": "/exit", "/retry": "/regen", "/reset": "/clear"}
"""What other programs call the commands."""
ALONE = ("/help", "/clear", "/undo", "/regen", "/stats", "/exit")
"""Commands that take no text."""


def chat(flags: ChatFlags, messages: list[Message], settings: Settings) -> None:
    """Talk until the input ends. Raises typer.Exit where a turn failed and nobody was there to see it."""
    with loading(flags.model):
        llm = LLM(flags.model, scout="auto" if flags.auto else settings.scout, **asdict(settings.engine))
    with llm:
        if not llm.tokenizer.has_chat_template:
            raise ConfigError(f"{flags.model} has no chat template: use `scout generate`")
        if flags.auto:
            tell(f"--auto chose {chosen(llm.scout)}")
        talk = Chat(llm, messages, settings)
        talk.run()
    if talk.failed and not talk.interactive:
        raise typer.Exit(2)


class Chat:
    """A conversation with a model.

    messages: all of it, the system prompt first if there is one.   failed: whether a turn was refused.
    interactive: whether somebody types the turns.
    """

    def __init__(self, llm: LLM, messages: list[Message], settings: Settings) -> None:
        self._llm = llm
        self._params = settings.params
        self.messages = messages
        self.failed = False
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print(HELP, file=sys.stderr),
            "/system": self._system,
            "/clear": self._clear,
            "/undo": self._undo,
            "/regen": self._regen,
            "/save": self._save,
            "/stats": lambda _: show(stats_table(llm.stats()), stderr=True),
        }

    def run(self) -> None:
        """Answer turn after turn, until the input or /exit ends it."""
        if self.interactive:
            print("/help lists the commands, Ctrl-D ends the chat.", file=sys.stderr)
        if self.messages and self.messages[-1]["role"] == "user":
            self._answer()
        while (text := self._read()) is not None and (self._name(text), *text.split()[1:]) != ("/exit",):
            self._take(text)

    def _read(self) -> str | None:
        """The next turn or command; None at the end. Raises PromptError where nobody is there to type it again."""
        while True:
            try:
                return read_turn()
            except EOFError:
                if self.interactive:
                    print(file=sys.stderr)
                return None
            except PromptError as error:
                if not self.interactive:
                    raise
                self._refuse(str(error))
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                go_on()
                print("\n/exit or Ctrl-D ends the chat.", file=sys.stderr)

    def _take(self, text: str) -> None:
        """Do what a line says, or answer it."""
        name, rest = self._name(text), text.partition(" ")[2].strip()
        if rest and name in ALONE:
            self._refuse(f"{name} stands alone: leave out {rest!r}")
        elif name in self._commands:
            try:
                self._commands[name](rest)
            except ConfigError as error:
                self._refuse(str(error))
        elif name:
            self._refuse(f"there is no command {name}: /help lists them")
        elif text.strip():
            self.messages.append({"role": "user", "content": text})
            self._answer()

    @staticmethod
    def _name(text: str) -> str:
        """The command that a line is; empty where it is a turn, as "/etc/hosts is a file" is."""
        word = text.split(maxsplit=1)[0] if text.startswith("/") else ""
        return OTHER_NAMES.get(word, word) if word.count("/") == 1 and "\n" not in text else ""

    def _answer(self) -> None:
        """Answer the last message. Where that is refused, or interrupted at once, the message is forgotten."""
        texts: list[str] = []
        reason = None
        try:
            with closing(chunks(self._llm, self.messages, self._params)) as answer:
                for chunk in answer:
                    texts.append(chunk.text)
                    reason = chunk.finish_reason
                    print(chunk.text, end="", flush=True)
        except (PromptError, CapacityError) as error:
            self._refuse(f"{error}; /undo forgets a turn, /clear all of them")
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            go_on()
        if texts:
            print(flush=True)
        if reason == "length":
            tell("the answer ends here for lack of room: raise --max-tokens or --max-model-len")
        if reason is None and not "".join(texts):
            self.messages.pop()
        else:
            self.messages.append({"role": "assistant", "content": "".join(texts)})

    def _refuse(self, text: str) -> None:
        self.failed = True
        tell(text)

    def _system(self, text: str) -> None:
        first = self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []
        if text:
            self.messages[: len(first)] = [{"role": "system", "content": text}]
        else:
            print(first[0]["content"] if first else "there is no system prompt", file=sys.stderr)

    def _clear(self, _: str) -> None:
        del self.messages[self._turns() :]

    def _undo(self, _: str) -> None:
        while len(self.messages) > self._turns():
            if self.messages.pop()["role"] == "user":
                return

    def _regen(self, _: str) -> None:
        if len(self.messages) == self._turns():
            raise ConfigError("there is no turn to answer once more")
        while len(self.messages) > self._turns() and self.messages[-1]["role"] != "user":
            self.messages.pop()
        self._answer()

    def _turns(self) -> int:
        """Where the turns begin: after the system prompt."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("/save needs the name of a file")
        data = json.dumps(self.messages, ensure_ascii=False, indent=2)
        write_file(Path(name).expanduser(), data.encode(errors="replace"))
        verb = "is" if len(self.messages) == 1 else "are"
        print(f"{counted(len(self.messages), 'message')} {verb} in {name}", file=sys.stderr)


def read_turn() -> str:
    """A line, or the lines between two triple quotation marks. Raises EOFError at the end, and PromptError."""
    line = read_line(">>> ")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].endswith(QUOTES):
        try:
            lines.append(read_line("... "))
        except EOFError:
            raise PromptError(f"the text that begins with {QUOTES} has no {QUOTES} at its end") from None
    return "\n".join(lines).removesuffix(QUOTES).strip("\n")
