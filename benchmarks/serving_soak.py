"""Memory of the service over minutes of load and abuse.

    python benchmarks/serving_soak.py --json FILE                    ten minutes, on a synthetic catalogue as Beauty's
    python benchmarks/serving_soak.py --graph composed --bundle runs/demo/bundle --minutes 2

A constant rate of requests (open loop, real HTTP) with a cache that new sessions fill and empty, and beside it what no
client should send: bodies of a megabyte, deep JSON, 10,000 clicks, wrong types, unknown items alone, connections that
send half a request and leave. Every answer has to be the documented one. The resident memory of each process is read
every few seconds; what counts is the median of the last fifth of the readings beside that of the second fifth (the
first warms up).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from serving import HERE, Service, service
from serving_bundle import bodies, write_synthetic

BETWEEN_READINGS_S = 5.0
BETWEEN_ABUSES_S = 0.2
DEEP = b'{"session_id": "s", "items": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
ABUSES: tuple[tuple[bytes, int], ...] = (
    (b"x" * 2**20, 413),
    (DEEP, 422),
    (json.dumps({"session_id": "s", "items": ["a"] * 10_000}).encode(), 422),
    (b'{"session_id": {}, "items": "a", "k": []}', 422),
    (b'{"session_id": "s", "items": [NaN]}', 422),
    (b'{"session_id": "s", "items": ["\\u0000", "no such item"]}', 200),
    (b'{"session_id": "s", "items": []}', 200),
)


class Abuse:
    """Sends what no client should, in turns, until it is stopped; counts what came back."""

    def __init__(self, url: str) -> None:
        self.url, self.answers = url, Counter[str]()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._send)

    def __enter__(self) -> Abuse:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _send(self) -> None:
        target = urlsplit(self.url)
        with httpx.Client(timeout=60, trust_env=False) as client:
            for body, expected in itertools.cycle(ABUSES):
                if self.stop.wait(BETWEEN_ABUSES_S):
                    return
                try:
                    status = client.post(f"{self.url}/recommend", content=body).status_code
                    self.answers["as documented" if status == expected else f"{status} in place of {expected}"] += 1
                except httpx.HTTPError as error:
                    self.answers[f"{type(error).__name__} in place of {expected}"] += 1
                with socket.create_connection((str(target.hostname), target.port or 80)) as leaving:
                    leaving.sendall(b"POST /recommend HTTP/1.1\r\nHost: service\r\nContent-Length: 9999\r\n\r\n{")


def soak(running: Service, load: Path, rate: float, seconds: float) -> tuple[dict[str, list[int]], dict[str, object]]:
    """Resident MiB of each process by reading, and the client's figures."""
    command = [sys.executable, HERE / "serving_client.py", running.url + "/recommend", load, "--rate", rate]
    client = subprocess.Popen([*map(str, command), "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
    readings: dict[str, list[int]] = defaultdict(list)
    while client.poll() is None:
        for name, process in running.processes().items():
            readings[name].append(process.memory_info().rss >> 20)
        time.sleep(BETWEEN_READINGS_S)
        print(
            f"\r{len(next(iter(readings.values()))) * BETWEEN_READINGS_S:,.0f} s", end="", file=sys.stderr, flush=True
        )
    if client.returncode:
        raise SystemExit(f"the client ended with status {client.returncode}")
    assert client.stdout is not None
    figures: dict[str, object] = json.loads(client.stdout.read())
    return readings, figures


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `serve run` would inherit a background job's deaf ear
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parent / "serve_configs" / "local.yaml")
    parser.add_argument("--bundle", type=Path, help="a real bundle; without it a synthetic one of --items")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--graph", choices=["fused", "composed"], default="fused")
    parser.add_argument("--rate", type=float, default=100, help="good requests a second")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "llm4sbr-bench"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bundle = arguments.bundle or arguments.folder / f"items-{arguments.items}"
    if not arguments.bundle:
        write_synthetic(bundle, arguments.items)
    load = arguments.folder / "bodies-soak.jsonl"
    load.write_bytes(bodies(bundle))
    started = service(arguments.config, bundle, True, {"graph": arguments.graph}, False)
    with started as running, Abuse(running.url) as abuse:
        readings, client = soak(running, load, arguments.rate, 60 * arguments.minutes)
    figures: dict[str, object] = {
        "soak_minutes": arguments.minutes,
        "soak_requests": client["sent"],
        "soak_errors": client["errors"],
        "soak_p90_ms": client["p90_ms"],
        "soak_abuses": abuse.answers.total(),
        "soak_abuses_not_as_documented": abuse.answers.total() - abuse.answers["as documented"],
    }
    print(f"\n{figures}\n{dict(abuse.answers)}\n{'resident MiB':44}{'second fifth':>14}{'last fifth':>12}{'most':>8}")
    for name, values in readings.items():
        fifth = max(1, len(values) // 5)
        early, late = (
            round(statistics.median(part)) for part in (values[fifth : 2 * fifth] or values, values[-fifth:])
        )
        print(f"{name:44}{early:>14,}{late:>12,}{max(values):>8,}")
        plain = re.sub(r"\W+", "_", re.sub(r"-\d+$", "", name))
        figures |= {f"soak_{plain}_mib_early": early, f"soak_{plain}_mib_late": late}
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "readings": readings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
