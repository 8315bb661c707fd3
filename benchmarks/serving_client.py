"""The load generator of `benchmarks/serving.py`: a process of its own that sends HTTP requests and measures answers.

    python benchmarks/serving_client.py URL BODIES.jsonl --rate 1000 --seconds 60        open loop
    python benchmarks/serving_client.py URL BODIES.jsonl --connections 32 --seconds 10   closed loop: the capacity

Open loop: requests leave at the times of a Poisson process whatever the answers do, and a latency counts from the
scheduled time, so neither a slow answer nor a late client hides behind the next one. Prints one JSON line.

It shares the service's cores, so it is lean: prepared bytes, keep-alive connections, the parser that uvicorn uses.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

TIMEOUT_S = 30.0
SAMPLED = 16  # every so many answers are read: their version and the service's own timings


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.began = 0.0
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser: Any = httptools.HttpResponseParser(self)

    def send(self, payload: bytes, began: float) -> None:
        self.busy, self.began = True, began
        self.body: list[bytes] = []
        self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.busy = False
        reusable = self.parser.should_keep_alive()
        status = self.parser.get_status_code()
        self.parser = httptools.HttpResponseParser(self)
        self.load.answered(self, status, b"".join(self.body), reusable)
        if not reusable:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """Counts and times of one measurement."""

    def __init__(self, url: str, bodies: list[bytes], headers: list[str]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        head = "".join(f"{line}\r\n" for line in ["Content-Type: application/json", *headers])
        self.payloads = [
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{head}Content-Length: {len(b)}\r\n\r\n".encode() + b
            for b in bodies
        ]
        self.idle: list[Connection] = []
        self.waiting: collections.deque[float] = collections.deque()
        self.open = self.sent = self.in_flight = 0
        self.measuring_from = self.closed_until = float("inf")
        self.latencies: list[float] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self.timings: dict[str, list[float]] = collections.defaultdict(list)
        self.versions: set[str] = set()
        self.bytes = 0

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        self.open += 1
        _, connection = await loop.create_connection(lambda: Connection(self), self.host, self.port)
        return connection

    def request(self, connection: Connection, began: float) -> None:
        self.in_flight += 1
        connection.send(self.payloads[self.sent % len(self.payloads)], began)
        self.sent += 1

    def answered(self, connection: Connection, status: int, body: bytes, reusable: bool) -> None:
        now = time.perf_counter()
        self.in_flight -= 1
        if connection.began >= self.measuring_from:
            self.latencies.append(now - connection.began)
            self.statuses[str(status)] += 1
            self.bytes += len(body)
            if status == 200 and len(self.latencies) % SAMPLED == 0:
                self._read(body)
        if not reusable:
            return
        if self.waiting:
            self.request(connection, self.waiting.popleft())
        elif now < self.closed_until != float("inf"):
            self.request(connection, now)
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.busy:
            self.in_flight -= 1
            if connection.began >= self.measuring_from:
                self.statuses["lost"] += 1

    def _read(self, body: bytes) -> None:
        answer = orjson.loads(body)
        if isinstance(answer, dict) and "timings_ms" in answer:
            self.versions.add(answer["version"])
            for hop, value in answer["timings_ms"].items():
                self.timings[hop].append(value)

    async def drain(self) -> None:
        deadline = time.perf_counter() + TIMEOUT_S
        while (self.in_flight or self.waiting) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        self.statuses["timeout"] += self.in_flight + len(self.waiting)


async def open_loop(load: Load, rate: float, warmup: float, seconds: float, constant: bool, connections: int) -> float:
    """Send on schedule; gives the seconds measured."""
    load.idle = [await load.connect() for _ in range(min(connections, 64))]
    gaps = random.Random(0)
    due = time.perf_counter() + 0.05
    load.measuring_from = due + warmup
    end = load.measuring_from + seconds
    while due < end:
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(due - now)
            continue
        if load.idle:
            load.request(load.idle.pop(), due)
        elif load.open < connections:
            load.request(await load.connect(), due)
        else:
            load.waiting.append(due)
        due += 1 / rate if constant else gaps.expovariate(rate)
    return seconds


async def closed_loop(load: Load, warmup: float, seconds: float, connections: int) -> float:
    """Each connection asks again at once."""
    idle = [await load.connect() for _ in range(connections)]
    load.measuring_from = time.perf_counter() + warmup
    load.closed_until = load.measuring_from + seconds
    for connection in idle:
        load.request(connection, time.perf_counter())
    await asyncio.sleep(warmup + seconds)
    return seconds


def percentile(sorted_values: list[float], share: float) -> float:
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    load = Load(arguments.url, arguments.bodies.read_bytes().splitlines(), arguments.header)
    cpu = time.process_time()
    if arguments.rate:
        seconds = await open_loop(
            load, arguments.rate, arguments.warmup, arguments.seconds, arguments.constant, arguments.connections
        )
    else:
        seconds = await closed_loop(load, arguments.warmup, arguments.seconds, arguments.connections)
    await load.drain()
    cpu = time.process_time() - cpu
    latencies = sorted(load.latencies)
    good = load.statuses["200"]
    return {
        "requests_per_second": round(good / seconds, 1),
        **{f"p{n}_ms": round(percentile(latencies, n / 100) * 1000, 2) for n in (50, 90, 99)},
        "max_ms": round(percentile(latencies, 1) * 1000, 2),
        "sent": load.sent,
        "errors": sum(load.statuses.values()) - good,
        "statuses": {status: n for status, n in load.statuses.items() if n},
        "answer_bytes": load.bytes // max(1, len(latencies)),
        "client_cpu_ms_per_request": round(1000 * cpu / max(1, load.sent), 3),
        "versions": sorted(load.versions),
        "timings_ms": {
            hop: {f"p{n}": round(percentile(sorted(values), n / 100), 2) for n in (50, 90)}
            for hop, values in load.timings.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--rate", type=float, help="requests a second; without it the loop is closed")
    parser.add_argument("--constant", action="store_true", help="even gaps instead of a Poisson process")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warmup", type=float, default=3)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--header", action="append", default=[], help="'Name: value'")
    print(json.dumps(uvloop.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
