"""An engine that answers at once."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

from scoutattention.attention.step import StepStats
from scoutattention.engine.stats import Stats

STATS = Stats(
    prompt_tokens=2,
    new_tokens=2,
    prefill_s=2.0,
    decode_s=2.0,
    decode_tokens=4,
    first_token_s=2.0,
    requests=1,
    kv_bytes_total=4096,
    kv_bytes_device=1024,
    steps=StepStats(4, 1, 2, 2.0, 2.0, 1, 2),
)


class FakeLLM:
    """Stands in for the engine: remembers what it was asked, answers "Hi there"."""

    made: "FakeLLM"
    raises: BaseException | None = None
    pieces = ("Hi", " there")
    ends = "stop"
    did = STATS

    def __init__(self, model, **options):
        FakeLLM.made = self
        self.model, self.options = model, options
        decoder = SimpleNamespace(weights=SimpleNamespace(files=()))
        self.engine = SimpleNamespace(calibration="none", runner=SimpleNamespace(decoder=decoder))
        self.closed = False
        self.tokenizer = SimpleNamespace(has_chat_template=model != "plain")
        if isinstance(self.raises, Exception):
            raise self.raises

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def stream(self, prompt, params, *, chat=False, on_prompt):
        self.prompt, self.params, self.chat = deepcopy(prompt), params, chat
        on_prompt(1, 2)
        on_prompt(2, 2)
        first, second = self.pieces
        yield SimpleNamespace(
            text=first, token_ids=[5], finish_reason=None, logprobs=[{5: -0.5}], prompt_logprobs=[None]
        )
        if self.raises is not None:
            raise self.raises
        yield SimpleNamespace(text=second, token_ids=[6, 7], finish_reason=self.ends, logprobs=[{6: -1.0}, {7: -1.0}])

    @property
    def messages(self):
        """The conversation that was asked about last."""
        return self.prompt

    def stats(self):
        return replace(self.did, device=self.options["device"])

    def settle(self):
        pass

    def close(self):
        self.closed = True
