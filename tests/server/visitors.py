"""Clients that send requests of every kind to a server, in a process of their own, whose memory is not the server's."""

import json
import random
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

import httpx

CLIENTS = 8
PATH = "/v1/completions"
BAD = (
    {"prompt": 5},
    {"prompt": "a" * 600},
    {"prompt": [999]},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "model": "x"},
    {"prompt": "a", "best_of": 2},
    {"prompt": "a", "max_tokens": 10**6},
    {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
    {"prompt": "a", "logit_bias": {"999": 1}},
    {},
)
KNOWN = ("the first of all prompts", "a prompt " * 30, "abc")
WORDS = tuple("".join(random.Random(number).choices("abcdefgh", k=1 + number % 12)) for number in range(500))
"""Of prompts: the tokenizers package keeps 10,000 words in a cache of each thread, which would grow for minutes."""
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


class Visitor:
    """A client that sends requests of every kind. Each method is a kind; it returns what became of the request."""

    def __init__(self, url: str, known: dict[str, str], seed: int) -> None:
        self.url, self.known, self.chance = url, known, random.Random(seed)

    def visit(self, until_s: float) -> Counter[str]:
        counts, kinds = Counter(), [name for name in vars(Visitor) if name.startswith("ask_")]
        while time.monotonic() < until_s:
            kind = self.chance.choice(kinds)
            with httpx.Client(base_url=self.url, timeout=120) as client:
                counts[f"{kind.removeprefix('ask_')}: {getattr(self, kind)(client)}"] += 1
        return counts

    def body(self, **more):
        prompt = " ".join(self.chance.choices(WORDS, k=175))[: self.chance.randint(1, 350)]
        return {"prompt": prompt, "max_tokens": self.chance.randint(1, 100), "ignore_eos": True, "seed": 1, **more}

    def ask_known(self, client):
        prompt = self.chance.choice(list(self.known))
        said = client.post(PATH, json={"prompt": prompt, "max_tokens": 20, "temperature": 0})
        if said.status_code == 200 and self.known[prompt] is not None:
            assert said.json()["choices"][0]["text"] == self.known[prompt]
        return right(said)

    def ask_many(self, client):
        body = self.body(n=4)
        said = client.post(PATH, json=body)
        if said.status_code == 200:
            assert said.json()["usage"]["completion_tokens"] == 4 * body["max_tokens"]
        return right(said)

    def ask_json(self, client):
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        said = client.post(PATH, json={**self.body(), "max_tokens": 150, "response_format": wanted})
        if said.status_code == 200:
            json.loads(said.json()["choices"][0]["text"])
        return right(said)

    def ask_stream(self, client):
        with client.stream("POST", PATH, json=self.body(stream=True, min_tokens=1)) as response:
            lines = list(response.iter_lines())
        assert response.status_code == 429 or "data: [DONE]" in lines
        return response.status_code

    def ask_and_leave(self, client):
        with client.stream("POST", PATH, json=self.body(stream=True)) as response:
            list(islice(response.iter_lines(), 6))
        return response.status_code

    def ask_without_patience(self, client):
        with suppress(httpx.TimeoutException):
            return client.post(PATH, json=self.body(), timeout=0.02).status_code
        return "gone"

    def ask_badly(self, client):
        said = client.post(PATH, json=self.chance.choice(BAD))
        assert said.status_code in (400, 404, 429), said.text
        return right(said)

    def ask_nonsense(self, client):
        said = client.post(PATH, content=self.chance.randbytes(self.chance.randint(0, 300)))
        assert said.status_code == 400
        return 400

    def ask_half(self, client):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as half:
            half.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{"prom')
        return "gone"

    def ask_in_a_burst(self, client):
        with ThreadPoolExecutor(6) as threads:
            said = list(threads.map(lambda _: client.post(PATH, json=self.body(max_tokens=3)), range(6)))
        return max(map(right, said))


def right(said):
    """The status of a response, which is one that docs/server.md has."""
    assert said.status_code in (200, 400, 404, 429), said.text
    assert said.status_code == 200 or said.json()["error"]["code"] == said.status_code
    return said.status_code


def main(url: str, seconds: str, seed: str, known: str) -> None:
    """Print what became of the requests, as JSON.   known: the answers of some prompts, as JSON; null is any."""
    end = time.monotonic() + float(seconds)

    def visit(number: int) -> Counter[str]:
        return Visitor(url, json.loads(known), int(seed) + number).visit(end)

    with ThreadPoolExecutor(CLIENTS) as threads:
        print(json.dumps(sum(threads.map(visit, range(CLIENTS)), Counter())))


if __name__ == "__main__":
    main(*sys.argv[1:])
