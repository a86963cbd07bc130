"""The method: what is chosen, who attends to it, and when blocks move."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from ..errors import ConfigError
from .fields import Checked, setting

OnMiss = Literal["compute", "fetch", "drop"]
FarQuery = Literal["predicted", "true"]
PredictorName = Literal["plain", "calibrated", "oracle"]
DigestName = Literal["two-stage", "keys2", "minmax", "exact"]
Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class Ablation(Checked):
    """What only experiments change: each field turns one idea of the method off, or into a rival's.

    `scout eval fidelity --ablate` and the rivals of the benchmarks are made of these. The defaults are the method, and
    docs/accuracy.md shows what each of them is worth.
    """

    on_miss: OnMiss = setting(
        "compute",
        "What happens to chosen blocks without a slot: the CPU attends to them ('compute'), they are copied to the "
        "device first ('fetch'), or they are left out ('drop').",
    )
    far_query: FarQuery = setting(
        "predicted",
        "The query that the CPU attends with: 'predicted'; or 'true', with which only the choice is made ahead.",
    )
    predictor: PredictorName = setting(
        "calibrated",
        "What predicts queries: the later layer's own projection ('plain'), the same after a correction that was "
        "fitted to each prompt ('calibrated'), or the true query ('oracle', for tests).",
    )
    correction_dims: int = setting(64, "Dimensions of the low-rank correction that each prompt fits.", least=1)
    correct_far: bool = setting(
        True, "Correct the weight of the CPU's partial result, to first order in the error of the predicted query."
    )
    true_query_layers: tuple[int, ...] | None = setting(
        None, "Layers that choose and attend with their true query.", none="each prompt's trial of scouts finds them"
    )
    min_scout_cosine: float = setting(
        0.8, "Mean cosine of scouts and true queries that a layer needs in a prompt's trial to use scouts.", least=-1
    )
    digest: DigestName = setting(
        "two-stage",
        "What blocks are judged by: half of their keys' main dimensions in 2 bits, and for candidates all of them "
        "('two-stage'); all channels in 2 bits ('keys2'), channel bounds ('minmax'), or the keys ('exact', slow).",
    )
    candidates: int = setting(
        4, "Blocks that are judged, as a multiple of the budget; the scout finds them for the true query too.", least=1
    )
    pooling: Pooling = setting(
        "mean",
        "How a KV head's query heads agree: 'mean' of their softmax over the blocks, or largest score ('max').",
    )
    recall_interval: int = setting(8, "Decode steps between two recalls of a layer; 0 never recalls.", least=0)
    recall_target: float | None = setting(
        0.05,
        "CPU share at which a layer keeps to the recall interval; at twice this share it recalls twice as often.",
        none="keeps every layer to the interval",
        none_word="off",
        least=0,
    )


@dataclass(frozen=True)
class ScoutConfig(Checked):
    """The method's settings. The source of the method is ScoutAttention, arXiv 2603.27138.

    Raises ConfigError where a value is out of range.
    """

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
        "Tokens that a decode step chooses, for each layer and KV head of a sequence.",
        change="Raise it where answers miss facts; twice the budget reads twice the bytes. In one memory, the "
        "default on a CPU, 2048 is a good value, because nothing else is attended to.",
        none="attends to every token",
        none_word="all",
    )
    block_size: int = setting(
        32,
        "Tokens of a block; blocks are chosen and moved as a whole.",
        change="Keep it. Smaller blocks make the choice more precise, and take more memory and time.",
        least=1,
        advanced=True,
    )
    sink_blocks: int = setting(
        1,
        "First blocks of a sequence that are always attended to.",
        change="Keep it at 1 or more: models give their first tokens much attention.",
        least=0,
        advanced=True,
    )
    recent_blocks: int = setting(
        1,
        "Last full blocks of a sequence that are always attended to.",
        change="Raise it where the next token depends on the last few hundred tokens.",
        least=0,
        advanced=True,
    )
    lookahead: int = setting(
        1,
        "How many layers ahead a query is predicted, the time that the CPU has; 0 predicts nothing.",
        change="Raise it, up to 4, where the statistics show CPU time that was waited for.",
        least=0,
    )
    calibration: str | None = setting(
        "auto",
        "Stored correction that predictions start from: a file, or 'auto' for what `scout calibrate` stored.",
        change="Run `scout calibrate` once for a model that you use with short prompts or a lookahead above 1.",
        none="starts from no stored correction",
        none_word="off",
        advanced=True,
    )
    guard: float | None = setting(
        0.02,
        "Part of a KV head's attention that a wrong prediction may affect before the true query corrects it.",
        change="Lower it for accuracy; raise it for speed where many heads are guarded. "
        "Any guard has the true query judge the scout's candidates.",
        none="never checks a prediction",
        none_word="off",
        least=0,
        advanced=True,
    )
    max_cpu_share: float | None = setting(
        0.085,
        "Largest part of the chosen blocks that the CPU attends to, on average; more far blocks are left out.",
        change="Raise it for accuracy where no CPU time is waited for; lower it for speed where some is.",
        none="sets no limit",
        none_word="off",
        least=0.01,
        advanced=True,
    )
    ablation: Ablation = field(default_factory=Ablation)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.always_blocks * self.block_size
        if self.budget is not None and self.budget < least:
            raise ConfigError(
                f"budget={self.budget} tokens is below {least}, which the {self.sink_blocks} sink, "
                f"{self.recent_blocks} recent and 1 open blocks of {self.block_size} tokens take: "
                "raise budget, or lower block_size"
            )

    @property
    def always_blocks(self) -> int:
        """Blocks that every step attends to: sink, recent, and the open one."""
        return self.sink_blocks + self.recent_blocks + 1

    @property
    def budget_blocks(self) -> int | None:
        """Closed blocks that a step may choose per layer and KV head: the budget without the open block."""
        return None if self.budget is None else self.budget // self.block_size - 1

    @property
    def candidate_blocks(self) -> int | None:
        """Closed blocks that are judged per layer and KV head, after a scan of all."""
        return None if self.budget is None else self.ablation.candidates * (self.budget // self.block_size)

    def changed(self, **values: Any) -> Self:  # noqa: ANN401  # of any field
        """The same configuration with other values, of its own fields or of its ablation's."""
        own = {item.name for item in fields(self)}
        ablation = {name: values.pop(name) for name in list(values) if name not in own}
        return replace(self, ablation=replace(self.ablation, **ablation), **values)
