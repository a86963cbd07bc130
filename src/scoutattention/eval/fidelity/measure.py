"""How close a configuration stays to full attention, over teacher-forced steps of a real text."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...attention.build import Cache
from ...attention.observer import Observer, Observers
from ...attention.step import StepStats
from ...cache.digests.exact import ExactDigests
from ...config import EngineConfig, Memory, ScoutConfig
from ...engine.engine import Engine
from ...engine.runner import Record
from ...engine.teacher_forcing import fed
from ...errors import ConfigError
from ...models.decoder import Decoder
from ...shape import ModelShape
from .ablation import Variant
from .layers import Layers, LayerWatch

Watch = Callable[[str, int, int], None]
"""watch(stage, done, total), in tokens of the prompt, then in steps."""

Step = tuple[Tensor, StepStats]


@dataclass(frozen=True)
class Truth:
    """A text with full attention.

    tokens: the context, the tokens that are fed, and the one after the last.
    record: the prompt, to be replayed.   log_probs: float32 [steps, vocab], after each fed token.
    """

    tokens: list[int]
    context: int
    record: Record
    log_probs: Tensor


@dataclass(frozen=True)
class Fidelity:
    """What a configuration costs, and what it saves.

    kl_mean, kl_p95: KL(full || configuration) of the next token in nats, over the steps; kl: of each step.
    share: of each step, the CPU share.
    delta_nll: negative log-likelihood of the text's next token, minus that under full attention, mean over the steps.
    top1_agreement: steps in which both think the same token the likeliest.
    cpu_share: of the chosen blocks, those that were absent.
    recall_interval: steps between two recalls of a layer, the mean; None where there were none.
    far_recall, guarded: see `Layers`, over all layers; None where nothing was predicted, or nothing was absent.
    digest_bytes_per_token: over all layers.   device_bytes: of the device's blocks and all digests, at the end.
    device_share: device_bytes of the whole cache's in its own dtype.   ms_per_step: without the time of measuring.
    calibration: see `Engine`.
    """

    kl_mean: float
    kl_p95: float
    delta_nll: float
    top1_agreement: float
    cpu_share: float
    recall_interval: float | None
    far_recall: float | None
    guarded: float | None
    digest_bytes_per_token: float
    device_bytes: float
    device_share: float
    ms_per_step: float
    kl: list[float]
    share: list[float]
    layers: Layers
    calibration: str


def check_lengths(shape: ModelShape, engine_config: EngineConfig, context: int, steps: int) -> None:
    """Raises ConfigError where the model cannot run so many tokens, or there are none to measure on."""
    for name, value in (("context", context), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"{name}={value} is below the least value 1: raise --{name}")
    limit = engine_config.max_model_len or shape.max_positions
    if context + steps > limit:
        knob = "the model's limit" if engine_config.max_model_len is None else "max_model_len"
        raise ConfigError(
            f"a context of {context} and {steps} steps are {context + steps} tokens, above {knob} of {limit}: "
            "lower --context or --steps"
        )


def for_one(engine_config: EngineConfig, device_memory: Memory) -> EngineConfig:
    """The configuration for one sequence, with another device memory."""
    return replace(engine_config, device_memory=device_memory, max_num_seqs=1)


def for_truth(engine_config: EngineConfig) -> EngineConfig:
    """The configuration for one sequence of full attention: everything on the device, and nothing packed."""
    return replace(for_one(engine_config, "all"), kv_dtype="auto")


def read(decoder: Decoder, engine_config: EngineConfig, tokens: list[int], context: int, watch: Watch) -> Truth:
    """Prefill the first `context` tokens and feed all but the last of the others, with full attention."""
    full = for_truth(engine_config)
    record: Record = []
    with closing(Engine(decoder, ScoutConfig(budget=None), full)) as engine:

        def fill() -> None:
            engine.runner.prefill(0, tokens[:context], lambda done, total: watch("reading", done, total), record)

        fed_tokens = tokens[:-1]
        steps = watched("full attention", len(fed_tokens) - context, fed(engine, fed_tokens, context, fill), watch)
        logits = [step_logits for step_logits, _ in steps]
    return Truth(tokens, context, record, torch.stack(logits).log_softmax(-1))


def measure(
    decoder: Decoder,
    engine_config: EngineConfig,
    truth: Truth,
    variant: Variant,
    watch: Watch,
    *,
    also: Observer | None = None,
) -> Fidelity:
    """Replay the text's prompt into an engine of another configuration, feed it the same tokens, and compare.

    also: an observer that looks on as well.
    """
    layers = LayerWatch(decoder.shape.num_layers)
    observers = Observers(layers) if also is None else Observers(layers, also)
    engine_config = for_one(engine_config, variant.device_memory)
    logits: list[Tensor] = []
    done: list[StepStats] = []
    started = 0.0
    with closing(Engine(decoder, variant.scout, engine_config, observers)) as engine:

        def fill() -> None:
            nonlocal started
            engine.runner.replay(0, truth.record)
            started = time.perf_counter()

        steps = fed(engine, truth.tokens[:-1], truth.context, fill)
        for step_logits, step in watched(variant.name, len(truth.log_probs), steps, watch):
            logits.append(step_logits)
            done.append(step)
            cache = cache_sizes(engine.cache)
        elapsed = time.perf_counter() - started - observers.seconds
    return compare(
        truth, TextRun(torch.stack(logits).log_softmax(-1), done, cache, layers, engine.calibration, elapsed)
    )


class CacheSizes(NamedTuple):
    """Bytes of a sequence's cache in its own dtype, its blocks on the device, and its digests, per token and in all."""

    whole: int
    held: int
    digests_per_token: float
    digests: float


class TextRun(NamedTuple):
    """One configuration's run over a text.   log_probs: float32 [steps, vocab].   elapsed_s: of all steps together."""

    log_probs: Tensor
    steps: list[StepStats]
    cache: CacheSizes
    layers: LayerWatch
    calibration: str
    elapsed_s: float


def cache_sizes(cache: Cache) -> CacheSizes:
    """The memory that the sequence in row 0 takes now."""
    store, digests = cache.store, cache.digests
    _, held = store.cache_bytes(1)
    whole = (store.closed[0] + 1) * store.near_pool.entry_bytes
    per_token = digests.block_bytes() * store.num_layers * store.heads / store.block_size
    shared = store.resident and isinstance(digests.judge, ExactDigests)  # they are the very keys of the one pool
    return CacheSizes(whole, held, per_token, 0 if shared else per_token * store.closed[0] * store.block_size)


def compare(truth: Truth, played: TextRun) -> Fidelity:
    """The measurements of a configuration, compared with full attention."""
    full, other, cache = truth.log_probs, played.log_probs, played.cache
    layers = played.layers.result()
    kl = (full.exp() * (full - other)).sum(-1)
    targets = torch.tensor(truth.tokens[truth.context + 1 :])[:, None]
    device = cache.held + cache.digests
    steps, total = len(kl), sum(played.steps, StepStats())
    return Fidelity(
        kl_mean=float(kl.mean()),
        kl_p95=float(kl.quantile(0.95)),
        delta_nll=float((full - other).gather(1, targets).mean()),
        top1_agreement=float((full.argmax(-1) == other.argmax(-1)).float().mean()),
        cpu_share=total.far_blocks / max(1, total.chosen_blocks),
        recall_interval=steps * len(layers.share) / total.recalls if total.recalls else None,
        far_recall=played.layers.far_recall,
        guarded=played.layers.guarded,
        digest_bytes_per_token=cache.digests_per_token,
        device_bytes=device,
        device_share=device / cache.whole,
        ms_per_step=played.elapsed_s / steps * 1e3,
        kl=kl.tolist(),
        share=[step.far_blocks / max(1, step.chosen_blocks) for step in played.steps],
        layers=layers,
        calibration=played.calibration,
    )


def watched(stage: str, total: int, steps: Iterator[Step], watch: Watch) -> Iterator[Step]:
    """The steps, each reported when it is done."""
    for done, step in enumerate(steps, start=1):
        yield step
        watch(stage, done, total)
