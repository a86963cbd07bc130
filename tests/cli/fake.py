"""An engine that answers at once."""

import json
from types import SimpleNamespace

from scoutattention.cli.actions.generate import JSON_STATS

NUMBERS = dict.fromkeys(JSON_STATS, 2) | {"cpu_share": 0.25, "kv_bytes_total": 4096, "kv_bytes_device": 1024}


class FakeLLM:
    """Stands in for the engine: remembers what it was asked, answers "Hi there"."""

    made: "FakeLLM"
    raises: BaseException | None = None
    pieces = ("Hi", " there")
    ends = "stop"

    def __init__(self, model, **options):
        FakeLLM.made = self
        self.model, self.options = model, options
        self.engine = SimpleNamespace(calibration="none")
        self.closed = False
        self.tokenizer = SimpleNamespace(
            has_chat_template=model != "plain", chat=json.dumps, encode=lambda text, *, add_special_tokens: [text]
        )
        if isinstance(self.raises, Exception):
            raise self.raises

    def stream(self, prompt, params, *, chat=False, on_prompt):
        self.prompt, self.params, self.chat = prompt, params, chat
        on_prompt(1, 2)
        on_prompt(2, 2)
        first, second = self.pieces
        yield SimpleNamespace(text=first, token_ids=[5], finish_reason=None)
        if self.raises is not None:
            raise self.raises
        yield SimpleNamespace(text=second, token_ids=[6, 7], finish_reason=self.ends)

    @property
    def messages(self):
        """The conversation that was asked about last."""
        return json.loads(self.prompt[0])

    def stats(self):
        return SimpleNamespace(**NUMBERS)

    def close(self):
        self.closed = True
