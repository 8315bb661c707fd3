"""Speed of the service over real HTTP, and where each millisecond goes.

    python benchmarks/serving.py --json FILE                                     less than 8 minutes
    python docs/results.py --add serving FILE --command 'python benchmarks/serving.py'    into docs/results.json
    python benchmarks/serving.py --quick                                         about 2 minutes
    python benchmarks/serving.py --bundle runs/demo/bundle --rate 200
    python benchmarks/serving.py --items 1000000 --set index=pq --rate 100 --only service

Runs `serve run` on the file given by `--config`, on a Ray of its own, and asks from another process (open loop: see
`serving_client.py`). Beside the service, with and without reasons in the answer, and in the same run: both forms of the
graph, a bare echo under the same Serve (the framework's floor), the composed graph under Serve's defaults, the model in
this process (the model's floor), and the search of large catalogues by whole products and by the index. All share the
machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import re
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
import orjson
import psutil
import torch
import yaml
from serving_bundle import bodies, write_synthetic

from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.explain import intents, recommendations
from llm4sbr_ray.serving.graph import Fused, Wanted
from llm4sbr_ray.serving.nearest import IndexKind, build_search

HERE = Path(__file__).parent
# Serve's own switches: requests go from HAProxy straight to the ingress replica, and user code shares its event loop.
TUNED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
START_TIMEOUT_S = 400  # a replica of a million items indexes them first
CAPACITY_CONNECTIONS = 32
PARTS = ["service", "others", "defaults", "model", "search"]
LARGE = [100_000, 1_000_000]


@dataclass
class Service:
    """A running `serve run`."""

    url: str
    cold_start_s: float
    process: psutil.Process

    def processes(self) -> dict[str, psutil.Process]:
        """Those of the service that carry a name of their own, by it."""
        found = {}
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = (process.cmdline() or [""])[0]
                name = title.removeprefix("ray::ServeReplica:").removeprefix("ray::").split()[0] if title else ""
                if title.startswith("ray::Serve") or "haproxy" in title.lower() or "Proxy" in title:
                    found[f"{Path(name).name}-{process.pid}"] = process
        return found

    def replicas(self) -> dict[str, int]:
        """Resident MiB of each replica."""
        return {
            name: process.memory_info().rss >> 20
            for name, process in self.processes().items()
            if process.cmdline()[0].startswith("ray::ServeReplica")
        }

    def measure(self, path: str, load: Path, *options: Any) -> dict[str, Any]:
        """One measurement by the client, and the CPU time that it cost each process of the service."""
        began = {name: (p, sum(p.cpu_times()[:2])) for name, p in self.processes().items()}
        row = ask(self.url + path, load, *options)
        spent = {}
        for name, (process, before) in began.items():
            with contextlib.suppress(psutil.Error):
                spent[name] = round(1000 * (sum(process.cpu_times()[:2]) - before) / max(1, row["sent"]), 3)
        return row | {"cpu_ms_per_request": {name: ms for name, ms in spent.items() if ms >= 0.02}}


@contextlib.contextmanager
def service(config: Path, bundle: Path, tuned: bool, changes: dict[str, Any], others: bool) -> Iterator[Service]:
    """`serve run` on the file with another bundle and port, on a Ray of its own.

    With `others`, the composed graph and the echo stand beside it, at /composed and /echo.
    """
    values = yaml.safe_load(config.read_text())
    values["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    application = values["applications"][0]
    application["args"] |= {"bundle": str(bundle.absolute()), **changes}
    if others:
        composed = copy.deepcopy(application) | {"name": "composed", "route_prefix": "/composed"}
        composed["args"]["graph"] = "composed"
        composed["deployments"] = [
            {"name": name, "ray_actor_options": {"num_cpus": 0.1}}
            for name in ("Ingress", "BehaviourEncoder", "EmbeddingCache", "FusionRanker")
        ]
        echo = {"name": "echo", "route_prefix": "/echo", "import_path": "serving_echo:app"}
        values["applications"] += [composed, echo]
    if application["args"].get("graph") == "fused":  # Serve refuses settings of deployments that are not there
        application["deployments"] = [d for d in application["deployments"] if d["name"] == "Ingress"]
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
            wait_for(url + "/healthz", process, log)
            cold = time.perf_counter() - began
            for path in ("/composed/healthz", "/echo") if others else ():
                wait_for(url + path, process, log)
            yield Service(url, cold, psutil.Process(process.pid))
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
    # A shell starts background jobs with SIGINT ignored, and `serve run` would inherit that: it ends by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parent / "serve_configs" / "local.yaml")
    parser.add_argument("--bundle", type=Path, help="a real bundle; without it a synthetic one of --items")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "llm4sbr-bench"))
    parser.add_argument("--rate", type=float, default=300, help="requests a second of the open loop")
    parser.add_argument("--composed-rate", type=float, default=100, help="the same for the composed graph")
    parser.add_argument("--seconds", type=float, default=40, help="of each open loop")
    parser.add_argument("--warmup", type=float, default=5)
    parser.add_argument("--capacity-seconds", type=float, default=10)
    parser.add_argument("--quick", action="store_true", help="8 seconds a measurement: for trying things")
    parser.add_argument("--constant", action="store_true", help="even gaps instead of a Poisson process")
    parser.add_argument("--set", action="append", default=[], help="name=value: an argument of the application")
    parser.add_argument("--only", action="append", default=[], choices=PARTS, help="may be repeated; default: all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.warmup, arguments.capacity_seconds = 8.0, 2.0, 5.0
    parts = arguments.only or PARTS
    changes = {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}

    bundle = arguments.bundle or arguments.folder / f"items-{arguments.items}"
    if not arguments.bundle:
        write_synthetic(bundle, arguments.items)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    load, bare = arguments.folder / "bodies.jsonl", arguments.folder / "bodies-bare.jsonl"
    load.write_bytes(bodies(bundle))
    bare.write_bytes(bodies(bundle, explain=False))
    timing = ["--seconds", arguments.seconds, "--warmup", arguments.warmup]
    timing += ["--constant"] if arguments.constant else []
    paced, slowly = (["--rate", rate, *timing] for rate in (arguments.rate, arguments.composed_rate))
    flat_out = ["--connections", CAPACITY_CONNECTIONS, "--seconds", arguments.capacity_seconds]

    rows: dict[str, dict[str, Any]] = {}
    figures: dict[str, Any] = {
        "rate": arguments.rate,
        "composed_rate": arguments.composed_rate,
        "items": Bundle(str(bundle)).manifest.n_items,
    }
    if "service" in parts:
        others = "others" in parts
        cases = {"service": ("/recommend", load), "without reasons": ("/recommend", bare)}
        if others:
            cases |= {"composed": ("/composed/recommend", load), "echo": ("/echo", load)}
        with service(arguments.config, bundle, True, {"graph": "fused", **changes}, others) as tuned:
            for name, (path, sent) in cases.items():
                tuned.measure(path, sent, "--connections", 8, "--seconds", 3)  # warm
                rows[name] = tuned.measure(path, sent, *(slowly if name == "composed" else paced))
                rows[f"{name}, flat out"] = tuned.measure(path, sent, *flat_out)
            figures |= {"cold_start_s": round(tuned.cold_start_s, 1), "replica_mib": tuned.replicas()}
    if "defaults" in parts:
        with service(arguments.config, bundle, False, {**changes, "graph": "composed"}, False) as defaults:
            defaults.measure("/recommend", load, *flat_out)
            rows["Serve's defaults"] = defaults.measure("/recommend", load, *slowly)
    if rows:
        show(rows)
    figures |= summary(rows)
    if "model" in parts:
        figures["model_cpu_ms"] = model_floor(bundle, load, changes.get("index", "exact"))
    if "search" in parts:
        sizes = LARGE[:1] if arguments.quick else LARGE
        figures["search"] = {f"{V} items": search_floor(V) for V in sizes}
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": flat(figures), "rows": rows}, indent=1) + "\n")


def flat(figures: dict[str, Any]) -> dict[str, Any]:
    """One level of names; a replica is named without its process id."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        parts = flat(value) if isinstance(value, dict) else {"": value}
        found |= {re.sub(r"-\d+$", "", f"{name}_{part}".strip("_")).replace(" ", "_"): v for part, v in parts.items()}
    return found


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of the contract: plain names for the service, prefixed ones for what stands beside it."""
    figures: dict[str, Any] = {}
    for name, row in rows.items():
        prefix = "" if name == "service" else name.replace("Serve's ", "").replace(", ", " ").replace(" ", "_") + "_"
        kept = ["requests_per_second", "p50_ms", "p90_ms", "p99_ms", "errors"]
        figures |= {prefix + key: row[key] for key in kept[: 1 if name.endswith("flat out") else 5]}
    if "echo, flat out" in rows:
        figures["floor_requests_per_second"] = rows["echo, flat out"]["requests_per_second"]
        ratio = rows["service, flat out"]["requests_per_second"] / figures["floor_requests_per_second"]
        figures["fraction_of_floor"] = round(ratio, 3)
    return figures


def model_floor(bundle: Path, load: Path, index: IndexKind) -> dict[str, float]:
    """CPU milliseconds of one session in this process, without HTTP: alone, in a batch of 16, and without reasons."""
    opened = Bundle(str(bundle))
    catalogue, fused = opened.catalogue(), Fused(opened, 100_000, 3, index)
    known = [catalogue.split_known(json.loads(line)["items"])[0] for line in load.read_bytes().splitlines()[:336]]
    queries = [Wanted(items, sorted(set(items)), 20) for items in known]
    bare = [query._replace(explain=False) for query in queries]
    names = [perspective.name for perspective in opened.manifest.perspectives]

    def cost(queries: list[Wanted], size: int) -> float:
        batches = [queries[at : at + size] for at in range(0, len(queries), size)]
        fused.rank_all(batches[0])
        began = time.process_time()
        for batch in batches[1:]:
            fused.rank_all(batch)
        return round(1000 * (time.process_time() - began) / (len(queries) - size), 3)

    rankings = [ranked.ranking for ranked in fused.rank_all(queries[:100])]
    began = time.process_time()
    for ranking in rankings:
        orjson.dumps([intents(ranking, names, catalogue), recommendations(ranking, names, catalogue)])
    wording = round(1000 * (time.process_time() - began) / len(rankings), 3)
    costs = {"alone": cost(queries, 1), "in_16": cost(queries, 16), "in_16_without_reasons": cost(bare, 16)}
    return costs | {"wording": wording}


def search_floor(V: int, width: int = 100, queries: int = 50, k: int = 20) -> dict[str, float]:
    """CPU milliseconds of one search for the k best of V normal vectors, and the share of them that the index finds."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    table_VD, query_QD = torch.randn(V, width, generator=draw), torch.randn(queries, width, generator=draw)
    found, figures = {}, {}
    kinds: tuple[IndexKind, ...] = ("exact", "pq")
    for kind in kinds:
        began = time.perf_counter()
        search = build_search(table_VD, kind)
        figures[f"{kind}_build_s"] = round(time.perf_counter() - began, 1)
        search(query_QD[:1], k)
        began = time.process_time()
        found[kind] = [search(query_D[None], k)[1][0].tolist() for query_D in query_QD]
        figures[f"{kind}_ms"] = round(1000 * (time.process_time() - began) / queries, 2)
    pairs = zip(found["exact"], found["pq"], strict=True)
    return figures | {f"pq_recall@{k}": round(sum(len(set(a) & set(b)) for a, b in pairs) / (k * queries), 4)}


def show(rows: dict[str, dict[str, Any]]) -> None:
    columns = ["requests_per_second", "p50_ms", "p90_ms", "p99_ms", "max_ms", "errors", "answer_bytes"]
    print(f"{'':26}" + "".join(f"{c.replace('requests_per_second', 'req/s'):>13}" for c in columns))
    for name, row in rows.items():
        print(f"{name:26}" + "".join(f"{row[c]:>13,}" for c in columns))
    print("CPU milliseconds a request, by process; and the milliseconds of each hop (p50) within the service")
    for name, row in rows.items():
        owners = {"client": row["client_cpu_ms_per_request"], **row["cpu_ms_per_request"]}
        print(f"{name:26}{owners}  { ({hop: values['p50'] for hop, values in row['timings_ms'].items()}) }")


if __name__ == "__main__":
    main()
