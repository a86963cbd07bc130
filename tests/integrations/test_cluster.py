"""The router of examples/cluster: requests are spread, and a replica that ends takes only its own answers along."""

import asyncio
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "cluster" / "cluster.py"


@pytest.fixture(scope="module")
def cluster():
    spec = importlib.util.spec_from_file_location("cluster", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = module
    spec.loader.exec_module(module)
    return module


class Server:
    """A replica that answers with its name, when it is let."""

    def __init__(self, name):
        self.name, self.let, self.bodies = name, asyncio.Event(), []
        self.writers = []

    async def start(self):
        self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: close" in head
        self.writers.append(writer)
        self.bodies.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await self.let.wait()
        writer.write(self.name)
        writer.close()

    def end(self):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody")
    answer = await reader.read()
    writer.close()
    return answer


async def play(cluster):
    servers = [Server(b"one"), Server(b"two")]
    replicas = [cluster.Replica(await server.start()) for server in servers]
    front = await asyncio.start_server(cluster.Router(replicas).serve, "127.0.0.1", 0)
    port = front.sockets[0].getsockname()[1]
    asked = [asyncio.create_task(ask(port)) for _ in range(4)]
    while sum(len(server.bodies) for server in servers) < 4:
        await asyncio.sleep(0.01)
    assert [len(server.bodies) for server in servers] == [2, 2]
    servers[0].end()
    servers[1].let.set()
    answers = await asyncio.gather(*asked)
    assert sorted(answer.endswith(b"two") for answer in answers) == [False, False, True, True]
    assert (await ask(port)).endswith(b"two")  # though the other one has answered fewer
    servers[1].end()
    assert (await ask(port)).startswith(b"HTTP/1.1 503")
    front.close()


def test_a_replica_that_ends_takes_only_its_own_answers_along(cluster):
    asyncio.run(asyncio.wait_for(play(cluster), 20))


def test_a_replica_that_ends_is_started_again(cluster, capfd, monkeypatch):
    monkeypatch.setattr(cluster, "PAUSE_S", 0.0)

    async def watch():
        task = asyncio.create_task(cluster.keep_running([sys.executable, "-c", "pass"], 1))
        while "start 2" not in (seen := seen_so_far()):
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return seen

    told = []

    def seen_so_far():
        told.append(capfd.readouterr().err)
        return "".join(told)

    assert "replica at port 1, start 1" in asyncio.run(asyncio.wait_for(watch(), 20))


REPLICA = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, file=sys.stderr, flush=True)
time.sleep({seconds})
"""


def running(pid):
    """Whether a process is there, and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("seconds", [0, 60])
def test_what_a_replica_started_ends_with_it(seconds, tmp_path):
    """With one that ends by itself, and with the program, which is told to end."""
    script, log = tmp_path / "replica.py", tmp_path / "log"
    script.write_text(REPLICA.format(seconds=seconds))
    command = [sys.executable, str(PATH), "--replicas", "1", "--port", "0", "--", sys.executable, str(script)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        child = wait_for(lambda: re.findall(r"child (\d+)", log.read_text()))[0]
        if seconds:
            assert running(child)
            process.terminate()
            assert process.wait(20) == 130
        wait_for(lambda: not running(child))
    finally:
        process.terminate()
        process.wait(20)


def wait_for(condition):
    for _ in range(400):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")
