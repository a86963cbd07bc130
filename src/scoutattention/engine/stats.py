"""Totals of an engine's work since it was made."""

from bisect import bisect_left
from dataclasses import dataclass, field

from ..attention.step import StepStats
from ..config.fields import counted, format_bytes

STEP_TOKENS = (1, 8, *(2**power for power in range(4, 15)))
"""Bounds of the counts of steps by their tokens, those of vLLM's histogram."""

ON_GPU = {
    "cache": "{} in full, {} on the device",
    "time": "{} hidden behind the device, {} waited for",
    "recalled": "{} to the device",
}
ON_CPU = {
    "cache": "{}, and {} of copies in slots: a CPU has one memory",
    "time": "{} beside other work, {} waited for",
    "recalled": "{} copied to slots",
}


@dataclass(frozen=True)
class Stats:
    """Totals over all requests. `print` shows the lines of `rows`.

    prefill_s, decode_s: seconds of prefill and of decode steps.   ttft_s: mean seconds from arrival to first token.
    tokens_per_s: decoded tokens per second of decode steps. The first token of each answer belongs to prefill.
    kv_bytes_total, kv_bytes_device: largest size of the running sequences' KV cache, and the device's part of it then.
    near_blocks, far_blocks: chosen closed blocks that the device held, and that it did not hold.
    cpu_share: far blocks as a part of all chosen blocks.
    guarded_heads: KV heads in which the guard attended to blocks again, summed over sequences, layers and steps.
    hidden_cpu_s, unhidden_cpu_s: seconds of CPU attention that overlapped with other work, and that were waited for.
    recalled_bytes: bytes copied from host pages to device slots.
    cached_tokens: prompt tokens that were reused from other prompts, and not prefilled.
    device: "cpu" or "cuda". A CPU is host and device at once, with one memory.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_tokens: int = 0
    first_token_s: float = 0.0
    requests: int = 0
    cached_tokens: int = 0
    kv_bytes_total: int = 0
    kv_bytes_device: int = 0
    steps: StepStats = field(default_factory=StepStats)
    device: str = "cpu"

    @property
    def ttft_s(self) -> float:
        """Mean seconds from a request's arrival to its first token."""
        return self.first_token_s / max(1, self.requests)

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens per second of decode steps."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    @property
    def computed_tokens(self) -> int:
        """Tokens that were read or made: prompts, without what was kept of others, and answers."""
        return self.prompt_tokens - self.cached_tokens + self.new_tokens

    @property
    def near_blocks(self) -> int:
        """Chosen closed blocks that the device held."""
        return self.steps.chosen_blocks - self.steps.far_blocks

    @property
    def far_blocks(self) -> int:
        """Chosen closed blocks that the device did not hold."""
        return self.steps.far_blocks

    @property
    def cpu_share(self) -> float:
        """Far blocks as a part of all chosen blocks."""
        return self.steps.far_blocks / max(1, self.steps.chosen_blocks)

    @property
    def guarded_heads(self) -> int:
        """KV heads in which the guard attended to blocks again."""
        return self.steps.guarded_heads

    @property
    def hidden_cpu_s(self) -> float:
        """Seconds of CPU attention that overlapped with other work."""
        return self.steps.hidden_s

    @property
    def unhidden_cpu_s(self) -> float:
        """Seconds that a layer waited for CPU attention."""
        return self.steps.unhidden_s

    @property
    def recalled_bytes(self) -> int:
        """Bytes copied from host pages to device slots."""
        return self.steps.recalled_bytes

    def __str__(self) -> str:
        return "\n".join(f"{name:<9} {value}" for name, value in self.rows().items())

    def rows(self) -> dict[str, str]:
        """The lines of a report, by name.

        What there was none of is left out: an answer, decode steps, blocks that the device did not hold.
        """
        full, held = format_bytes(self.kv_bytes_total), format_bytes(self.kv_bytes_device)
        kept = f" ({self.cached_tokens:,} of them kept from others)" if self.cached_tokens else ""
        first = f", first new token after {self.ttft_s:.2f} s" if self.new_tokens else ""
        speed = f", {self.tokens_per_s:.1f} tokens/s" if self.decode_tokens else ""
        rows = {"Prompt": f"{counted(self.prompt_tokens, 'token')}{kept}{first}"}
        rows |= {"Answer": f"{counted(self.new_tokens, 'token')}{speed}"} if self.new_tokens else {}
        rows |= {"KV cache": full}
        if self.kv_bytes_device < self.kv_bytes_total:
            words = ON_CPU if self.device == "cpu" else ON_GPU
            rows |= {
                "KV cache": words["cache"].format(full, held),
                "CPU share": f"{self.cpu_share:.1%} of the chosen blocks",
                "CPU time": words["time"].format(f"{self.hidden_cpu_s:.2f} s", f"{self.unhidden_cpu_s:.2f} s"),
                "Recalled": words["recalled"].format(format_bytes(self.recalled_bytes)),
            }
        return rows


class StepCounts:
    """How many steps of an engine have completed how many tokens.

    A prompt's tokens, without those that were kept of others, belong to the step that read its last one. Steps that
    complete none are not counted.

    counts: of steps with at most as many tokens as each of `STEP_TOKENS`, and more than the one before; the last one of
        steps with more.   tokens: of all steps.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(STEP_TOKENS) + 1)
        self.tokens = 0

    def add(self, tokens: int) -> None:
        """Count a step."""
        if tokens:
            self.counts[bisect_left(STEP_TOKENS, tokens)] += 1
            self.tokens += tokens
