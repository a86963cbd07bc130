"""Replicas of a server on one machine, behind one address.

    python examples/cluster/cluster.py --replicas 2 -- scout serve smollm2

The command behind `--` is started once for each replica, with `--port` and a port of its own. Each request goes to the
replica that answers the fewest. One that cannot be reached is left out until it answers again, and one that has ended
is started anew. A request that a replica was answering when it ended is lost; every other one is answered.
"""

import argparse
import asyncio
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

HOST = "127.0.0.1"
PAUSE_S = 1.0
"""Between the end of a replica and its next start."""
GATEWAY_ERROR = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(eq=False)
class Replica:
    """A server at a port.   answering: requests that it has.   answered: requests that it has had."""

    port: int
    answering: int = 0
    answered: int = 0


class Router:
    """Hands requests to replicas, one request for a connection."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer the request of one connection."""
        try:
            request = await read_request(reader)
            if request:
                await self._answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or speaks no HTTP
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: StreamWriter) -> None:
        """Pass a request on; a replica that has not begun to answer hands it to the next one."""
        for replica in sorted(self.replicas, key=lambda one: (one.answering, one.answered)):
            replica.answering += 1
            try:
                if await pass_on(replica.port, request, writer):
                    replica.answered += 1
                    return
            finally:
                replica.answering -= 1
        writer.write(GATEWAY_ERROR)
        await writer.drain()


async def pass_on(port: int, request: bytes, writer: StreamWriter) -> bool:
    """Send a request to a port, and what comes back to the client; False where nothing came."""
    begun = False
    try:
        reader, replica = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        replica.write(request)
        while piece := await reader.read(65536):
            begun = True
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        replica.close()
    return begun


async def read_request(reader: StreamReader) -> bytes:
    """A request, which asks for the connection to be closed after its answer; b"" where none comes."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")[:-2]
    fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in lines[1:]}
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body


async def keep_running(command: list[str], port: int) -> None:
    """Start a replica, and start it again whenever it ends. Processes that it leaves behind are ended with it."""
    for start in count(1):
        process = await asyncio.create_subprocess_exec(*command, "--port", str(port), start_new_session=True)
        print(f"replica at port {port}, start {start}: process {process.pid}", file=sys.stderr)
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await asyncio.sleep(PAUSE_S)


async def run(command: list[str], replicas: int, port: int) -> None:
    """Run replicas and their router until this program is ended."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    members = [Replica(port + 1 + number) for number in range(replicas)]
    server = await asyncio.start_server(Router(members).serve, HOST, port)
    async with server, asyncio.TaskGroup() as tasks:
        for member in members:
            tasks.create_task(keep_running(command, member.port))
        print(f"http://{HOST}:{port} has {replicas} replicas", file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Replicas of a server, behind one address.")
    parser.add_argument("--replicas", type=int, default=2, help="how many replicas")
    parser.add_argument("--port", type=int, default=8000, help="port of the address; replicas have the next ports")
    parser.add_argument("command", nargs="+", help="what starts a replica, behind --")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.command, options.replicas, options.port))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main()
