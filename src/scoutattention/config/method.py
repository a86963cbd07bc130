"""The settings of the method: choice of blocks, CPU share, recall, and ablations."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from ..errors import ConfigError, nearest
from .fields import Checked, names_of, setting

OnMiss = Literal["compute", "fetch", "drop"]
FarQuery = Literal["predicted", "true"]
PredictorName = Literal["plain", "calibrated", "oracle"]
DigestName = Literal["two-stage", "keys2", "minmax", "exact"]
Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class Ablation(Checked):
    """Settings for experiments only: each field switches one idea of the method off, or to another design's.

    The defaults are the method. `scout eval fidelity --ablate` and the rival designs of the benchmarks use other
    values; docs/accuracy.md shows what each idea is worth.
    """

    on_miss: OnMiss = setting(
        "compute",
        "What happens to chosen blocks without a slot: the CPU attends to them ('compute'), they are copied to the "
        "device first ('fetch'), or they are left out ('drop').",
    )
    far_query: FarQuery = setting(
        "predicted",
        "The query that the CPU attends with: 'predicted', or 'true'. With 'true' only the choice is made ahead.",
    )
    predictor: PredictorName = setting(
        "calibrated",
        "What predicts queries: the later layer's query projection of an earlier layer's input ('plain'), the same "
        "with a correction that is fitted to each prompt ('calibrated'), or the true query ('oracle', for tests).",
    )
    correction_dims: int = setting(64, "Rank of the low-rank correction that is fitted to each prompt.", least=1)
    correct_far: bool = setting(
        True, "Correct the weight of the CPU's result in the merge, to first order in the error of the predicted query."
    )
    true_query_layers: tuple[int, ...] | None = setting(
        None,
        "Layers that use their true query instead of a scout.",
        none="found on each prompt, by the trial of scouts",
    )
    min_scout_cosine: float = setting(
        0.8, "A layer uses scouts if their mean cosine to the true queries of the prompt is at least this.", least=-1
    )
    digest: DigestName = setting(
        "two-stage",
        "What blocks are scored by. 'two-stage': the keys in 2 bits per main dimension, half of the dimensions for all "
        "blocks and five in eight for candidates. 'keys2': the keys in 2 bits per channel. 'minmax': bounds of each "
        "channel. 'exact': the keys themselves (slow).",
    )
    candidates: int = setting(
        4, "Blocks that the second stage scores, as a multiple of the budget; the true query scores no others.", least=1
    )
    pooling: Pooling = setting(
        "mean",
        "How the scores of query heads that share a KV head are combined: the mean of their softmax over the blocks "
        "('mean'), or the largest score ('max').",
    )
    recall_interval: int = setting(8, "Decode steps between two recalls of a layer; 0 never recalls.", least=0)
    recall_target: float | None = setting(
        0.05,
        "CPU share at which a layer recalls at the recall interval; at twice this share it recalls twice as often.",
        none="makes every layer recall at the interval",
        none_word="off",
        least=0,
    )


@dataclass(frozen=True)
class ScoutConfig(Checked):
    """The settings of the method (ScoutAttention, arXiv 2603.27138). Raises ConfigError if a value is out of range."""

    old_names: ClassVar[Mapping[str, str]] = {
        "most_share": "write max_cpu_share",
        "cpu_share": "write ablation=Ablation(recall_target=...)",
        "rank": "write ablation=Ablation(correction_dims=...)",
        "least_cosine": "write ablation=Ablation(min_scout_cosine=...)",
        "wait_share": "recall goes by shares alone",
    } | {
        name: f"write ablation=Ablation({name}=...)"
        for name in (
            *("on_miss", "far_query", "predictor", "correct_far"),
            *("true_query_layers", "digest", "pooling", "recall_interval"),
        )
    }

    budget: int | None = setting(
        1024,
        "Tokens that each layer and KV head of a sequence chooses in a decode step.",
        change="Raise it if answers miss facts. Twice the budget reads twice the bytes. On a CPU 2048 is a good value, "
        "because everything is in one memory, and a step attends to nothing beyond the budget.",
        none="attends to every token",
        none_word="all",
    )
    block_size: int = setting(
        32,
        "Tokens in a block, the unit that is chosen and copied.",
        change="Keep it. Smaller blocks are chosen more precisely, but take more memory and time.",
        least=1,
        advanced=True,
    )
    sink_blocks: int = setting(
        1,
        "First blocks of a sequence that are always attended to.",
        change="Keep it at 1 or more: models give much attention to the first tokens.",
        least=0,
        advanced=True,
    )
    recent_blocks: int = setting(
        1,
        "Last full blocks of a sequence that are always attended to.",
        change="Raise it if the next token depends on the last few hundred tokens.",
        least=0,
        advanced=True,
    )
    lookahead: int = setting(
        1,
        "Layers between predicting a query and using it: the time that the CPU has. 0 predicts nothing.",
        change="Raise it, up to 4, if the statistics show that the device waited for the CPU.",
        least=0,
        most=16,
    )
    calibration: str | None = setting(
        "auto",
        "Stored correction of predicted queries: a file, or 'auto' for the one that `scout calibrate` stored, if any.",
        change="Run `scout calibrate` once for a model that you use with short prompts or a lookahead above 1.",
        none="uses no stored correction",
        none_word="off",
        advanced=True,
    )
    guard: float | None = setting(
        0.02,
        "Part of a KV head's attention that a wrong prediction may affect before the guard corrects it.",
        change="Lower it for accuracy. Raise it for speed if many heads are guarded.",
        none="never checks a prediction",
        none_word="off",
        least=0,
        most=1,
        advanced=True,
    )
    max_cpu_share: float | None = setting(
        0.085,
        "Largest part of the chosen blocks that the CPU attends to, on average. Far blocks beyond it are left out.",
        change="Raise it for accuracy if the device does not wait for the CPU. Lower it for speed if it does.",
        none="sets no limit",
        none_word="off",
        least=0.01,
        most=1,
        advanced=True,
    )
    ablation: Ablation = field(default_factory=Ablation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ablation, Ablation):
            raise ConfigError(
                f"ablation={self.ablation!r} is of type {type(self.ablation).__name__}: give an Ablation, as in "
                'Ablation(digest="minmax"), or leave ablation out'
            )
        least = self.always_blocks * self.block_size
        if self.budget is not None and self.budget < least:
            raise ConfigError(
                f"budget={self.budget} tokens is below {least}, which the {self.sink_blocks} sink, "
                f"{self.recent_blocks} recent and 1 open blocks of {self.block_size} tokens take: "
                "raise budget, or lower block_size"
            )

    @property
    def always_blocks(self) -> int:
        """Blocks that every step attends to: sink blocks, recent blocks and the open block."""
        return self.sink_blocks + self.recent_blocks + 1

    @property
    def budget_blocks(self) -> int | None:
        """Closed blocks that a step may choose per layer and KV head: the budget without the open block."""
        return None if self.budget is None else self.budget // self.block_size - 1

    @property
    def candidate_blocks(self) -> int | None:
        """Closed blocks that are judged per layer and KV head, after a scan of all blocks."""
        return None if self.budget is None else self.ablation.candidates * (self.budget // self.block_size)

    def changed(self, **values: Any) -> Self:  # noqa: ANN401  # of any field
        """A copy with other values for some fields, of this configuration or of its ablation.

        Raises ConfigError for a name that is a field of neither.
        """
        own = names_of(type(self))
        known = own + names_of(Ablation)
        for name in values:
            if name not in known:
                raise ConfigError(f"ScoutConfig and Ablation have no setting {name!r}: {nearest(name, known)}")
        ablation = {name: values.pop(name) for name in list(values) if name not in own}
        return replace(self, ablation=replace(self.ablation, **ablation), **values)
