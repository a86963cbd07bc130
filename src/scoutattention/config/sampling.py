"""A request: how its tokens are drawn, and when it ends."""

from dataclasses import dataclass

from ..errors import ConfigError
from .fields import Checked, setting


@dataclass(frozen=True)
class SamplingParams(Checked):
    """How one request is sampled. Raises ConfigError where a value is out of range."""

    max_tokens: int = setting(128, "New tokens at most.", change="Set it to the longest answer you want.", least=1)
    temperature: float = setting(
        0.0, "Randomness of sampling; 0 always takes the most likely token.", change="Raise it for variety.", least=0
    )
    top_p: float = setting(
        1.0,
        "Sample from the most likely tokens that together have this probability.",
        change="Lower it to 0.9 to leave out unlikely tokens.",
        advanced=True,
    )
    seed: int | None = setting(
        None,
        "Seed of sampling.",
        change="Set it to get the same answer again.",
        none="another answer each time",
        advanced=True,
    )
    stop: tuple[str, ...] = setting(
        (),
        "Texts that end the answer and are not part of it.",
        change="Set it to the end mark of your format.",
        advanced=True,
    )
    ignore_eos: bool = setting(
        False,
        "Go on after the model's end-of-sequence token.",
        change="Set it for benchmarks of fixed length.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]")
