"""The engine as a model of lm-evaluation-harness: its tasks run on what users run.

    lm_eval.simple_evaluate(ScoutLM(LLM("smollm2", scout=ScoutConfig(budget=1024))), tasks=["niah_single_1"])

A prompt is read with full attention; every token after it, generated or scored, is the method's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from ..engine.llm import LLM
from ..engine.teacher_forcing import fed
from ..errors import ConfigError, PromptError

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise ConfigError(
        f"ScoutLM needs lm-eval, and {error.name} is missing: pip install 'scout-attention[eval]'"
    ) from error

DEFAULT_NEW_TOKENS = 256
UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "seed"}


class ScoutLM(LM):
    """An `LLM` as the harness sees models. It takes no part of a prompt away: what is too long is refused."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm
        self._tokenizer = llm.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """What the harness names cached requests after."""
        return self._llm.model

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for the next answer; without a generation prompt, for the rest of the last message."""
        if add_generation_prompt:
            return self._tokenizer.chat(chat_history)
        return self._tokenizer.chat(chat_history[:-1]) + chat_history[-1]["content"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to (context, options) requests; those with the same options run as one ragged batch.

        Raises ConfigError for options that the engine does not have, PromptError for a prompt that is too long.
        """
        answers = [""] * len(requests)
        groups: dict[SamplingParams, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(read_options(request.args[1]), []).append(i)
        for params, members in groups.items():
            prompts = [self.encode(requests[i].args[0]) for i in members]
            for i, output in zip(members, self._llm.generate(prompts, params), strict=True):
                answers[i] = output.text
                self.cache_hook.add_partial("generate_until", requests[i].args, output.text)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For (context, continuation) requests, the log-probability and whether greedy decoding gives the same."""
        results = []
        for request in requests:
            result = self.score(*self.encode_pair(*request.args))
            self.cache_hook.add_partial("loglikelihood", request.args, result)
            results.append(result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """For (text,) requests, the log-probability; longer than `max_model_len`, in windows with all context."""
        results = []
        for request in requests:
            ids = self._tokenizer.encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix(), self._llm.engine.plan.max_len - 1, 1)
            total = sum(self.score(*make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-probability of a continuation's tokens, and whether each is the likeliest. The context is not empty."""
        logits = self._next_token_logits(context, continuation)
        target = torch.tensor(continuation)
        chosen = logits.log_softmax(-1).gather(-1, target[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == target).all())

    def _next_token_logits(self, context: list[int], continuation: list[int]) -> Tensor:
        """Logits for each token of a continuation, float32 [tokens, vocab]."""
        self._llm.settle()
        engine, ids = self._llm.engine, context + continuation
        known = max(1, len(context) - 1)  # the context's last token is the method's first step
        logits: list[Tensor] = []
        steps = fed(engine, ids, known, lambda: logits.append(engine.runner.prefill(0, ids[:known])))
        logits += [step for step, _ in steps]
        first = len(context) - known
        return torch.stack(logits[first : first + len(continuation)])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with what the model wants around texts unless it is there, as after a chat template."""
        around = self._tokenizer.encode("")
        plain = self._tokenizer.encode(text, add_special_tokens=False)
        return plain if around and plain[: len(around)] == around else self._tokenizer.encode(text)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, as of one text; spaces at the context's end belong to the continuation."""
        if not context:
            return [self.prefix()], self._tokenizer.encode(continuation, add_special_tokens=False)
        kept = context.rstrip(" ")
        whole = self.encode(context + continuation)
        start = min(len(self.encode(kept)), len(whole) - 1)  # a token may reach over the border
        return whole[:start], whole[start:]

    def prefix(self) -> int:
        """The token before a text without context: the beginning of sequence, else the end of one."""
        tokens = self._tokenizer.encode("") or sorted(self._tokenizer.eos_token_ids)
        if not tokens:
            raise PromptError("the model has no token for the beginning or end of a text: give every request a context")
        return tokens[0]


def read_options(options: Mapping[str, Any]) -> SamplingParams:
    """A task's generation options. Raises ConfigError for those that the engine does not have."""
    values: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), DEFAULT_NEW_TOKENS))
    unknown = sorted(values.keys() - UNDERSTOOD)
    if unknown and values["do_sample"]:  # a greedy answer does not depend on the others
        raise ConfigError(f"generation option {unknown[0]} is not one of {', '.join(sorted(UNDERSTOOD))}")
    return SamplingParams(
        max_tokens=values["max_gen_toks"],
        temperature=float(values.get("temperature", 0.0)),
        top_p=float(values.get("top_p", 1.0)),
        seed=values.get("seed"),
        stop=tuple(text for text in values["until"] if text),
    )
