"""Speed of the service over real HTTP, and where each millisecond goes.

    python benchmarks/serving.py --items 12101 --rate 1000 --seconds 180 --json FILE
    python benchmarks/serving.py --bundle runs/demo/bundle --rate 200

Runs `serve run` on the file given by `--config`, on a Ray of its own, and asks from another process (open loop: see
`serving_client.py`). Beside it, in the same run: a bare echo under the same Serve (the framework's floor), the same
application under Serve's defaults, and the model in this process (the model's floor). All share the machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from serving_bundle import bodies, write_synthetic

from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.graph import Fused, Wanted

HERE = Path(__file__).parent
# Serve's own switches: requests go from HAProxy straight to the ingress replica, and user code shares its event loop.
TUNED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
START_TIMEOUT_S = 120
CAPACITY_CONNECTIONS = 32


@dataclass
class Service:
    """A running `serve run`."""

    url: str
    cold_start_s: float
    processes: list[psutil.Process]

    def replicas(self) -> dict[str, float]:
        """Resident MiB of each replica, by deployment."""
        found: dict[str, float] = {}
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                title = (process.cmdline() or [""])[0]
                if title.startswith("ray::ServeReplica:llm4sbr:"):
                    found[f"{title.split(':')[4]}-{process.pid}"] = process.memory_info().rss / 2**20
        return found


@contextlib.contextmanager
def service(config: Path, bundle: Path, tuned: bool, changes: dict[str, Any]) -> Iterator[Service]:
    """`serve run` on the file, with another bundle and port, and the echo beside; on a Ray of its own."""
    values = yaml.safe_load(config.read_text())
    values["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    values["applications"][0]["args"] |= {"bundle": str(bundle.absolute()), **changes}
    application = values["applications"][0]
    if application["args"].get("graph") == "fused":  # Serve refuses settings of deployments that are not there
        application["deployments"] = [d for d in application["deployments"] if d["name"] == "Ingress"]
    values["applications"].append({"name": "echo", "route_prefix": "/echo", "import_path": "serving_echo:app"})
    switches = {name: value for name, value in os.environ.items() if name not in TUNED}
    env = (
        switches | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)} | (TUNED if tuned else {})
    )
    url = f"http://127.0.0.1:{values['http_options']['port']}"
    with tempfile.TemporaryDirectory() as folder:
        written, log = Path(folder, "serve.yaml"), Path(folder, "log")
        written.write_text(yaml.safe_dump(values))
        command = [Path(sys.executable).with_name("serve"), "run", written]
        began = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        try:
            for path in ("/healthz", "/echo"):
                wait_for(url + path, process, log)
            cold = time.perf_counter() - began
            yield Service(url, cold, psutil.Process(process.pid).children(recursive=True))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer:\n{log.read_text(errors='replace')[-4000:]}")


def ask(url: str, load: Path, *options: Any) -> dict[str, Any]:
    """One measurement by the client."""
    command = [sys.executable, HERE / "serving_client.py", url, load, *map(str, options)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parent / "serve_configs" / "local.yaml")
    parser.add_argument("--bundle", type=Path, help="a real bundle; without it a synthetic one of --items")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "llm4sbr-bench"))
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warmup", type=float, default=10)
    parser.add_argument("--capacity-seconds", type=float, default=10)
    parser.add_argument("--constant", action="store_true", help="even gaps instead of a Poisson process")
    parser.add_argument("--set", action="append", default=[], help="name=value: an argument of the application")
    parser.add_argument("--without", action="append", default=[], choices=["defaults", "model", "capacity"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    changes = {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}

    bundle = arguments.bundle or arguments.folder / f"items-{arguments.items}"
    if not arguments.bundle:
        write_synthetic(bundle, arguments.items)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    load = arguments.folder / "bodies.jsonl"
    load.write_bytes(bodies(bundle))
    paced = ["--rate", arguments.rate, "--seconds", arguments.seconds, "--warmup", arguments.warmup]
    paced += ["--constant"] if arguments.constant else []
    flat_out = ["--connections", CAPACITY_CONNECTIONS, "--seconds", arguments.capacity_seconds]

    rows: dict[str, dict[str, Any]] = {}
    with service(arguments.config, bundle, True, changes) as tuned:
        ask(f"{tuned.url}/recommend", load, *flat_out)  # warm
        rows["service"] = ask(f"{tuned.url}/recommend", load, *paced)
        rows["echo"] = ask(f"{tuned.url}/echo", load, *paced)
        if "capacity" not in arguments.without:
            rows["service, flat out"] = ask(f"{tuned.url}/recommend", load, *flat_out)
            rows["echo, flat out"] = ask(f"{tuned.url}/echo", load, *flat_out)
        memory = tuned.replicas()
    if "defaults" not in arguments.without:
        with service(arguments.config, bundle, False, {"graph": "composed"}) as defaults:
            ask(f"{defaults.url}/recommend", load, *flat_out)
            rows["Serve's defaults"] = ask(f"{defaults.url}/recommend", load, *paced)
            if "capacity" not in arguments.without:
                rows["defaults, flat out"] = ask(f"{defaults.url}/recommend", load, *flat_out)
    show(rows)
    print(f"cold start {tuned.cold_start_s:.1f} s; resident MiB { ({n: round(v) for n, v in memory.items()}) }")
    for name, row in rows.items():
        if row["timings_ms"]:
            print(f"hops of {name}: {row['timings_ms']}  client {row['client_cpu_ms_per_request']} ms CPU a request")
    figures: dict[str, Any] = {
        key: rows["service"][key] for key in ("requests_per_second", "p50_ms", "p90_ms", "p99_ms", "errors")
    }
    if "capacity" not in arguments.without:
        service_flat, echo_flat = (rows[f"{n}, flat out"]["requests_per_second"] for n in ("service", "echo"))
        figures |= {"capacity_requests_per_second": service_flat, "floor_requests_per_second": echo_flat}
        figures["fraction_of_floor"] = round(service_flat / echo_flat, 3)
    if "defaults" not in arguments.without:
        figures |= {f"defaults_{key}": rows["Serve's defaults"][key] for key in ("requests_per_second", "p90_ms")}
    figures |= {"echo_p90_ms": rows["echo"]["p90_ms"], "cold_start_s": round(tuned.cold_start_s, 1)}
    if "model" not in arguments.without:
        figures["model_cpu_ms"] = model_floor(bundle, load)
        print(f"model alone, one session at a time: {figures['model_cpu_ms']} ms CPU")
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "rows": rows}, indent=1) + "\n")


def model_floor(bundle: Path, load: Path) -> float:
    """CPU milliseconds that one session costs the model in this process, without HTTP and without batching."""
    opened = Bundle(str(bundle))
    catalogue, fused = opened.catalogue(), Fused(opened, 100_000, 3)
    known = [catalogue.split_known(json.loads(line)["items"])[0] for line in load.read_bytes().splitlines()[:220]]
    queries = [Wanted(items, sorted(set(items)), 20) for items in known]
    for query in queries[:20]:
        fused.rank_all([query])
    began = time.process_time()
    for query in queries[20:]:
        fused.rank_all([query])
    return round(1000 * (time.process_time() - began) / len(queries[20:]), 3)


def show(rows: dict[str, dict[str, Any]]) -> None:
    columns = ["requests_per_second", "p50_ms", "p90_ms", "p99_ms", "max_ms", "errors", "answer_bytes"]
    print(f"{'':22}" + "".join(f"{c.replace('requests_per_second', 'req/s'):>13}" for c in columns))
    for name, row in rows.items():
        print(f"{name:22}" + "".join(f"{row[c]:>13,}" for c in columns))


if __name__ == "__main__":
    main()
