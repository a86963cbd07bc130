"""A request: how its tokens are drawn, and when it ends."""

from dataclasses import dataclass

from ..errors import ConfigError
from .fields import Checked, setting


@dataclass(frozen=True)
class SamplingParams(Checked):
    """How one request is sampled. Raises ConfigError where a value is out of range."""

    max_tokens: int = setting(128, "New tokens at most.", change="Set it to the longest answer you want.", least=1)
    temperature: float = setting(
        0.0, "Randomness of the draw; 0 always takes the likeliest token.", change="Raise it for variety.", least=0
    )
    top_p: float = setting(
        1.0,
        "Draw from the likeliest tokens that together have this probability.",
        change="Lower it to 0.9 to leave out unlikely tokens.",
    )
    seed: int | None = setting(
        None,
        "Makes random draws repeatable.",
        change="Set it to get the same answer again.",
        none="each draw is new",
    )
    stop: tuple[str, ...] = setting(
        (), "Texts that end the answer and are not part of it.", change="Set it to the end mark of your format."
    )
    ignore_eos: bool = setting(
        False, "Go on after the model's end-of-sequence token.", change="Set it for benchmarks of fixed length."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]")
