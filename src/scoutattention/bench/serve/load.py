"""A load generator: requests that come at random times, as those of independent people do."""

import asyncio
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import httpx

from ...errors import ConfigError
from .prompts import prompts

PATIENCE_S = 1800.0
"""Seconds without a piece of an answer after which a request has failed."""
GUESS = 4.0
"""Characters of a token, before the server has told."""


@dataclass(frozen=True)
class Target:
    """A server.   url: of its API, with /v1.   model: what it calls the model.   key: what it wants, or None."""

    url: str
    model: str
    key: str | None = None


@dataclass(frozen=True)
class Workload:
    """What is asked.   prompt_tokens, new_tokens: of each request.   text: what prompts are made of."""

    requests: int
    prompt_tokens: int
    new_tokens: int
    text: str
    seed: int = 0


class Asked(NamedTuple):
    """One request.   ttft_s: to the first token.   gaps_s: between pieces of the answer.   whole_s: to its end.

    error: why it failed, or None.
    """

    ttft_s: float
    gaps_s: tuple[float, ...]
    whole_s: float
    prompt_tokens: int
    new_tokens: int
    error: str | None = None


class Load(NamedTuple):
    """What came of all requests at one rate.   seconds: from the first request to the last answer."""

    rate: float
    seconds: float
    asked: list[Asked]


def find_target(url: str, key: str | None) -> Target:
    """The server at a URL, and its model. Raises ConfigError where there is none."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    try:
        with httpx.Client(headers=_headers(key), timeout=30) as client:
            found = client.get(f"{base}/models")
        name = found.raise_for_status().json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"no OpenAI-compatible server answers at {base}/models: {error}") from error
    return Target(base, str(name), key)


def measure(target: Target, workload: Workload, rates: Sequence[float], tell: Callable[[str], object]) -> list[Load]:
    """Ask at each rate, in requests a second; math.inf is all at once.

    tell: told what is being done.
    Raises PromptError where the text is too short, and ConfigError where the server answers nothing.
    """
    return asyncio.run(_measure(target, workload, rates, tell))


async def _measure(
    target: Target, workload: Workload, rates: Sequence[float], tell: Callable[[str], object]
) -> list[Load]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=_headers(target.key), timeout=PATIENCE_S, limits=limits) as client:
        tell("Trying one request")
        each = GUESS * workload.prompt_tokens
        trial = next(prompts(workload.text, int(each), workload.seed))
        first = await _ask(client, target, trial, 1)
        if first.error is not None:
            raise ConfigError(f"{target.url} did not answer a first request: {first.error}")
        found = first.prompt_tokens or await _prompt_tokens(client, target, trial) or workload.prompt_tokens
        characters = max(1, round(each * workload.prompt_tokens / found))
        asking = prompts(workload.text, characters, workload.seed)
        return [await _at(client, target, workload, rate, asking, tell) for rate in rates]


async def _prompt_tokens(client: httpx.AsyncClient, target: Target, prompt: str) -> int:
    """Tokens of a prompt, from a server that does not tell them in a stream; 0 where it does not tell them at all."""
    body = {"model": target.model, "prompt": prompt, "max_tokens": 1}
    try:
        said = (await client.post(f"{target.url}/completions", json=body)).raise_for_status().json()
        return int(said["usage"]["prompt_tokens"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return 0


async def _at(
    client: httpx.AsyncClient,
    target: Target,
    workload: Workload,
    rate: float,
    asking: Iterator[str],
    tell: Callable[[str], object],
) -> Load:
    """All requests at one rate, each at its time, however long the others take."""
    chance = random.Random(workload.seed)
    texts = [next(asking) for _ in range(workload.requests)]
    began, at, tasks = time.perf_counter(), 0.0, []
    for number, text in enumerate(texts):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.ensure_future(_ask(client, target, text, workload.new_tokens)))
        tell(f"{rate:g} requests/s: {number + 1} of {workload.requests} asked, {sum(t.done() for t in tasks)} answered")
        at += 0.0 if math.isinf(rate) else chance.expovariate(rate)
    asked = await asyncio.gather(*tasks)
    return Load(rate, time.perf_counter() - began, asked)


async def _ask(client: httpx.AsyncClient, target: Target, prompt: str, new_tokens: int) -> Asked:
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, times, usage, error = time.perf_counter(), list[float](), dict[str, Any](), None
    try:
        async with client.stream("POST", f"{target.url}/completions", json=body) as response:
            if response.status_code != 200:
                error = f"status {response.status_code}: {(await response.aread())[:200].decode(errors='replace')}"
            else:
                async for event in _events(response):
                    error = error or _error(event)
                    if event.get("choices"):
                        times.append(time.perf_counter())
                    usage = event.get("usage") or usage
    except (httpx.HTTPError, ValueError) as failed:
        error = f"{type(failed).__name__}: {failed}"
    whole = time.perf_counter() - began
    if error is None and not times:
        error = "the answer was empty"
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    new = usage.get("completion_tokens", len(times))
    return Asked(times[0] - began if times else whole, gaps, whole, usage.get("prompt_tokens", 0), new, error)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, without the last one. Raises ValueError where one is no JSON."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _error(event: dict[str, Any]) -> str | None:
    found = event.get("error")
    return None if found is None else str(found.get("message", found) if isinstance(found, dict) else found)


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}
