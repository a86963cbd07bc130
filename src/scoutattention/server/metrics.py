"""Metrics for Prometheus. Those that mean the same as a metric of vLLM have its name."""

import time
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..attention.step import COUNTERS
from ..engine.stats import STEP_TOKENS
from .engine import Engine, Memory

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
TOKENS = tuple(2**power for power in range(21))
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a request to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between two pieces of an answer.", SECONDS),
    "e2e_request_latency_seconds": ("From a request to its end.", SECONDS),
    "request_queue_time_seconds": ("From a request to the beginning of its prompt's reading.", SECONDS),
    "request_prefill_time_seconds": ("From the beginning of a prompt's reading to the first token.", SECONDS),
    "request_decode_time_seconds": ("From the first token to the last.", SECONDS),
    "request_time_per_output_token_seconds": ("Mean time between the tokens of an answer.", SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", TOKENS),
}
"""What each tells of, and its buckets."""
REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """What `/metrics` tells.   began: Unix time."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.began = int(time.time())
        self._labels = {"model_name": model, "engine": "0"}
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.new_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self._histograms = {name: self._histogram(name, *about) for name, about in HISTOGRAMS.items()}
        self._finished = Counter(
            "vllm:request_success",
            "Answers that ended, by reason.",
            [*self._labels, "finished_reason"],
            registry=self.registry,
        )
        for reason in REASONS:
            self._finished.labels(*self._labels.values(), reason)
        self.registry.register(_Totals(engine, self._labels))

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram of `HISTOGRAMS`."""
        self._histograms[name].observe(value)

    def read_prompt(self, tokens: int) -> None:
        """A prompt has come."""
        self._prompt_tokens.inc(tokens)
        self.observe("request_prompt_tokens", tokens)

    def made(self, tokens: int, seconds: float) -> None:
        """An answer has ended.   seconds: from its first token to its last."""
        self.observe("request_generation_tokens", tokens)
        self.observe("request_decode_time_seconds", seconds)
        if tokens > 1:
            self.observe("request_time_per_output_token_seconds", seconds / (tokens - 1))

    def finished(self, reason: str) -> None:
        """An answer has ended for this reason."""
        self._finished.labels(*self._labels.values(), reason).inc()

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(f"vllm:{name}", text, list(self._labels), registry=self.registry)
        return made.labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"vllm:{name}", text, list(self._labels), registry=self.registry, buckets=buckets)
        return made.labels(**self._labels)


class _Totals(Collector):
    """Reads the engine's totals when somebody asks."""

    def __init__(self, engine: Engine, labels: dict[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        stats, memory = self._engine.stats(), self._engine.memory()
        running, waiting = self._engine.queue()
        yield self._gauge("vllm:num_requests_running", "Answers that are made.", running)
        yield self._gauge("vllm:num_requests_waiting", "Answers that wait.", waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Pages in use, 1 for all.", memory.pages.share)
        yield self._counter("vllm:num_preemptions", "Always 0: no answer is interrupted for another.", 0)
        yield self._config(memory)
        yield self._counter("vllm:prefix_cache_queries", "Tokens of prompts that were looked for.", stats.prompt_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Those of them that were kept.", stats.cached_tokens)
        yield self._steps()
        for name, what, tier in (("host", "pages", memory.pages), ("device", "slots", memory.slots)):
            yield self._gauge(f"scout:{name}_pool_blocks", f"Blocks that the pool of {what} has room for.", tier.blocks)
            yield self._gauge(f"scout:{name}_pool_blocks_used", "Blocks of them that sequences use.", tier.used)
            yield self._gauge(f"scout:{name}_pool_usage_perc", f"The same as a part, 1 for all {what}.", tier.share)
            yield self._gauge(f"scout:{name}_pool_bytes", f"Size of the pool of {what}.", tier.bytes)
        yield self._gauge("scout:cpu_share", "Far blocks of all chosen ones.", stats.cpu_share)
        yield self._residency()
        for name, (text, read) in COUNTERS.items():
            yield self._counter(f"scout:{name}", text, read(stats.steps))
        yield self._counter("scout:prefill_seconds", "Seconds in prompts.", stats.prefill_s)
        yield self._counter("scout:decode_seconds", "Seconds in decode steps.", stats.decode_s)

    def _config(self, memory: Memory) -> Metric:
        labels = {
            **self._labels,
            "block_size": str(memory.block_size),
            "num_gpu_blocks": str(memory.slots.blocks),
            "num_cpu_blocks": str(memory.pages.blocks),
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "Sizes of the KV cache, as labels.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family

    def _steps(self) -> Metric:
        steps = self._engine.steps()
        text = "Tokens that a step of the engine completed."
        family = HistogramMetricFamily("vllm:iteration_tokens_total", text, labels=list(self._labels))
        bounds = [*map(str, map(float, STEP_TOKENS)), "+Inf"]
        buckets = list(zip(bounds, accumulate(steps.counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, steps.tokens)
        return family

    def _residency(self) -> Metric:
        text = "Of a recent step's chosen blocks in a layer, the part that the device held."
        family = GaugeMetricFamily("scout:layer_residency", text, labels=[*self._labels, "layer"])
        for layer, share in enumerate(self._engine.residency()):
            family.add_metric([*self._labels.values(), str(layer)], share)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
