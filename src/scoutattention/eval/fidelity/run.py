"""Measurements of several configurations on several texts: one prefill for each text."""

from collections.abc import Mapping, Sequence

from ...attention.observer import Observer
from ...config import EngineConfig
from ...models.loader import LoadedModel
from ..text import Text, first_tokens
from .ablation import Variant
from .measure import Watch, check_lengths, measure, read
from .report import Measured


def run(
    model: LoadedModel,
    engine_config: EngineConfig,
    texts: Sequence[Text],
    lengths: tuple[int, int],
    *,
    variants: Sequence[Variant],
    watch: Watch,
    also: Mapping[str, Observer] | None = None,
) -> list[Measured]:
    """Measure every variant on the beginning of every text; `lengths` are the context's and the steps', in tokens.

    also: one more observer, for variants by name.

    One text's prompt is held in memory at a time.   Raises ConfigError and PromptError before anything is computed
    where the model or a text is too short.
    """
    context, steps = lengths
    decoder = model.decoder
    check_lengths(decoder.shape, engine_config, context, steps)
    tokens = [first_tokens(model.tokenizer, text, context + steps + 1) for text in texts]
    measured = []
    for text, ids in zip(texts, tokens, strict=True):

        def named(stage: str, done: int, total: int, name: str = text.name) -> None:
            watch(f"{name}: {stage}", done, total)

        truth = read(decoder, engine_config, ids, context, named)
        for variant in variants:
            fidelity = measure(decoder, engine_config, truth, variant, named, also=(also or {}).get(variant.name))
            measured.append(Measured(text.name, variant, fidelity))
    return measured
