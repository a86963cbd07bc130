import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from scoutattention.server.app import Server
from scoutattention.server.run import Process, bind, url_of
from scoutattention.server.state import Options

from .fake import FakeEngine


class Client(httpx.Client):
    """A client of one server.   engine, server: behind it.   end: tells the server to end."""

    engine: FakeEngine
    server: Server

    def post_json(self, path, **body):
        return self.post(path, json=body)

    def events(self, path, **body):
        """The events of a stream, as JSON, without the last one, which says that it is done."""
        with self.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if line.startswith("data: ")]


@contextmanager
def serving(engine, options=None, look=lambda: None, **about):
    """A client of a server on a free port of this computer."""
    server, started = Server(engine, options or Options(**{"model": "fake", **about})), threading.Event()
    process, bound = Process(server, started.set, look), bind("127.0.0.1", 0)
    thread = threading.Thread(target=process.run, args=([bound],))
    thread.start()
    assert started.wait(10)
    try:
        with Client(base_url=url_of(bound), timeout=10) as client:
            client.engine, client.server, client.process, client.thread = engine, server, process, thread
            yield client
    finally:
        process.should_exit = True
        if isinstance(engine, FakeEngine):
            engine.go.set()
        thread.join(20)
        bound.close()
        assert not thread.is_alive()


def connected(client):
    """A connection to a client's server, for what is no whole request."""
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=5)


def until(condition, seconds=5.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def shared():
    """A server that many tests may ask; they leave its engine as it is."""
    with serving(FakeEngine()) as client:
        yield client


@pytest.fixture
def client(shared):
    shared.engine.answers.clear()
    return shared
