"""What survives dead nodes: the pipeline, and then the service under a constant rate of requests.

    python benchmarks/chaos.py --json FILE                 both
    python benchmarks/chaos.py --bundle runs/demo/bundle   the service alone
    python benchmarks/chaos.py --without llm --without service    the pipeline without its LLM stage

Starts a cluster of a head and three worker nodes on this machine (`ray.cluster_utils.Cluster`). The pipeline runs on it
once undisturbed, then while workers are killed and added at random; a run that ends with an error is started again, as
a user would. Both runs are compared row by row. Then the bundle is served with two replicas of each part on different
nodes; replicas and a node are killed under load. Every answer is compared with the one from before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported

import httpx
import numpy as np
import psutil
import ray
import yaml
from ray.cluster_utils import Cluster
from serving_bundle import bodies

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.serving.ask import free_port

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NODE = {"num_cpus": 4, "object_store_memory": 300 * 2**20}
WORKERS = 3
SMALL = ["--config", "configs/demo.yaml", "--data.demo.sessions", "320", "--data.demo.items", "120"]
SMALL += ["--perspectives.pocket.steps", "15", "--perspectives.engine.write_rows", "128", "--train.seeds", "0"]
SMALL += ["--train.epochs", "4", "--perspectives.store", "false"]


class Nodes:
    """The cluster, and what is done to it."""

    def __init__(self, seed: int) -> None:
        subprocess.run([BIN / "ray", "get-auth-token", "--generate"], check=True, capture_output=True)
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})  # all work on the workers
        self.workers = [self.cluster.add_node(**NODE) for _ in range(WORKERS)]
        self.random = random.Random(seed)
        self.killed = self.added = 0

    def kill(self, node: Any = None) -> None:
        node = node or self.random.choice(self.workers)
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.killed += 1

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(**NODE))
        self.added += 1

    def disturb(self, every_s: float, work: threading.Thread) -> None:
        """Kill one at random, add another some seconds later, as long as the work goes on."""
        while work.is_alive():
            work.join(every_s * self.random.uniform(0.7, 1.3))
            if work.is_alive():
                self.kill()
                work.join(self.random.uniform(2, 10))
                self.add()


@contextlib.contextmanager
def nodes(seed: int) -> Iterator[Nodes]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Nodes(seed)
    try:
        yield made
    finally:
        left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        ray.shutdown()
        made.cluster.shutdown()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def run_pipeline(address: str, storage: Path, name: str, models: str, attempts: int) -> tuple[int, float]:
    """Starts that it took, and seconds."""
    command = [sys.executable, "jobs/pipeline.py", *SMALL, "--name", name, "--storage", storage]
    command += ["--cluster.address", address, "--train.models", models, "--perspectives.schedule_timeout_s", "120"]
    began = time.monotonic()
    for attempt in range(1, attempts + 1):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        (storage / f"{name}-{attempt}.log").write_text(done.stdout + done.stderr)
        if done.returncode == 0:
            return attempt, time.monotonic() - began
        print(f"{name}: start {attempt} ended with {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    raise SystemExit(f"{name}: no success in {attempts} starts, see {storage}")


def pipeline(made: Nodes, storage: Path, every_s: float, llm: bool) -> dict[str, Any]:
    models = "sknn,srgnn,srgnn+llm4sbr" if llm else "sknn,srgnn"
    run_pipeline(made.cluster.address, storage, "calm", models, 1)
    ended: list[tuple[int, float]] = []
    place = (made.cluster.address, storage, "disturbed", models)
    work = threading.Thread(target=lambda: ended.append(run_pipeline(*place, 8)))
    work.start()
    made.disturb(every_s, work)
    if not ended:
        raise SystemExit("the disturbed run did not come to its end")
    starts, disturbed_s = ended[0]
    calm, disturbed = (Store(str(storage / name)) for name in ("calm", "disturbed"))
    stages = calm.read_json("run.json")["stages"]  # it may be there from an earlier call with the same --storage
    figures: dict[str, Any] = {
        "seconds_calm": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "seconds_disturbed": round(disturbed_s, 1),
        "nodes_killed": made.killed,
        "nodes_added": made.added,
        "starts": starts,
    }
    for split in ("train", "valid", "test"):
        one, other = (store.read_table("data", split) for store in (calm, disturbed))
        figures[f"samples_equal_{split}"] = one.equals(other)
    if llm:
        figures["answers_from_store"] = disturbed.read_json("run.json")["stages"]["perspectives"]["from_store"]
    for view in ("long-term", "short-term") if llm else ():
        one, other = (store.read_table("perspectives", view) for store in (calm, disturbed))
        figures[f"answers_{view}"] = one.num_rows
        figures[f"answers_lost_{view}"] = len(set(one["sample_key"].to_pylist()) ^ set(other["sample_key"].to_pylist()))
        pairs = zip(one["answer"].to_pylist(), other["answer"].to_pylist(), strict=True)
        figures[f"answers_equal_{view}"] = round(float(np.mean([a == b for a, b in pairs])), 4)
        figures[f"errors_{view}"] = other.num_rows - other["error"].null_count
    one, other = (store.read_json("report", "metrics.json")["models"] for store in (calm, disturbed))
    for model in one:
        figures[f"recall@20 {model}"] = [m[model]["test"]["recall@20"] for m in (one, other)]
    return figures


@dataclass
class Load:
    """Requests at a constant rate whatever the answers do; a latency counts from the scheduled time."""

    url: str
    bodies: list[bytes]
    expected: list[list[str]]
    rate: float
    answers: list[tuple[float, float, str]] = field(default_factory=list)  # scheduled at, latency in ms, outcome

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        async with httpx.AsyncClient(trust_env=False, timeout=20, limits=limits) as client:
            began = time.perf_counter()
            tasks = []
            for number in range(int(seconds * self.rate)):
                at = number / self.rate
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                tasks.append(asyncio.create_task(self.one(client, number % len(self.bodies), began, at)))
            await asyncio.gather(*tasks)

    async def one(self, client: httpx.AsyncClient, which: int, began: float, at: float) -> None:
        try:
            response = await client.post(f"{self.url}/recommend", content=self.bodies[which])
            outcome = str(response.status_code)
            if response.status_code == 200:
                outcome = "right" if ranked(response.json()) == self.expected[which] else "wrong"
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        self.answers.append((at, 1000 * (time.perf_counter() - began - at), outcome))


def ranked(answer: dict[str, Any]) -> list[str]:
    return [found["item_id"] for found in answer["recommendations"]]


def service(made: Nodes, bundle: Path, rate: float, gap_s: float) -> dict[str, Any]:
    """Serve, ask, kill; figures of the time after each event."""
    values = yaml.safe_load((ROOT / "serve_configs" / "production.yaml").read_text())
    port = free_port()
    values["proxy_location"] = "HeadOnly"  # the client has one address: its proxy must not die with a worker
    values["http_options"] |= {"host": "127.0.0.1", "port": port, "request_timeout_s": 10}
    values["applications"][0]["args"]["bundle"] = str(bundle.absolute())
    for deployment in values["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.5}}
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "RAY_ADDRESS": made.cluster.address, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        written, log = Path(folder, "serve.yaml"), Path(folder, "log")
        written.write_text(yaml.safe_dump(values))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [BIN / "serve", "run", "--non-blocking", written], env=env, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 180
        while not healthy(url):
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        process.wait(timeout=60)
    posts = bodies(bundle).splitlines()[:200]
    expected = [ranked(httpx.post(f"{url}/recommend", content=post, trust_env=False).json()) for post in posts]
    load = Load(url, posts, expected, rate)
    names = ["FusionRanker", "Ingress", "BehaviourEncoder", "EmbeddingCache"]
    plan = [(f"kill a replica of {name}", lambda name=name: kill_replica(name)) for name in names]
    plan += [("kill a node", made.kill), ("add a node", made.add)]
    events = [(gap_s * (n + 1), what, act) for n, (what, act) in enumerate(plan)]
    work = threading.Thread(target=lambda: asyncio.run(load.run(gap_s * (len(events) + 2))))
    began = time.perf_counter()
    work.start()
    for at, _, act in events:  # in this thread: Ray adds nodes in the main one alone
        time.sleep(max(0.0, began + at - time.perf_counter()))
        act()
    work.join()
    rows = {}
    for at, what in [(0.0, "undisturbed"), *((at, what) for at, what, _ in events)]:
        within = [answer for answer in load.answers if at <= answer[0] < at + gap_s]
        rows[what] = row(within, at)
    rows["all"] = row(load.answers, 0.0)
    return {"rate": rate, "rows": rows}


def row(answers: list[tuple[float, float, str]], began: float) -> dict[str, Any]:
    latencies = [latency for _, latency, outcome in answers if outcome == "right"]
    outcomes = Counter(outcome for *_, outcome in answers)
    lost = [at - began for at, _, outcome in answers if outcome not in ("right", "wrong")]
    return {
        "requests": len(answers),
        "lost": len(lost),
        "wrong": outcomes["wrong"],
        "last_lost_after_s": round(max(lost), 1) if lost else 0.0,
        **{f"p{q}_ms": round(float(np.percentile(latencies, q)), 1) for q in (50, 90, 99, 100)},
        "outcomes": dict(outcomes),
    }


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=5, trust_env=False).status_code == 200
    return False


def kill_replica(deployment: str) -> None:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if f"llm4sbr#{deployment}#" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))


def show(figures: dict[str, Any]) -> None:
    for key, value in figures.get("pipeline", {}).items():
        print(f"{key:36} {value}")
    if "service" in figures:
        columns = ["requests", "lost", "wrong", "last_lost_after_s", "p50_ms", "p90_ms", "p99_ms", "p100_ms"]
        print(
            f"\n{'after':36}"
            + "".join(f"{column.replace('last_lost_after_s', 'lost for s'):>11}" for column in columns)
        )
        for what, values in figures["service"]["rows"].items():
            print(f"{what:36}" + "".join(f"{values[column]:>11}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="serve this one and leave the pipeline out")
    parser.add_argument("--storage", type=Path, help="where the two runs go; default: a folder that is deleted")
    parser.add_argument("--every", type=float, default=60, help="mean seconds between two deaths of a node")
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--gap", type=float, default=15, help="seconds between two events of the service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=["pipeline", "llm", "service"], action="append", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, nodes(arguments.seed) as made:
        storage = (arguments.storage or Path(folder)).absolute()
        storage.mkdir(parents=True, exist_ok=True)
        if not arguments.bundle and "pipeline" not in arguments.without:
            figures["pipeline"] = pipeline(made, storage, arguments.every, "llm" not in arguments.without)
        if "service" not in arguments.without:
            while len(made.workers) < WORKERS:
                made.add()
            ray.init(address=made.cluster.address, log_to_driver=False)
            figures["service"] = service(
                made, arguments.bundle or storage / "disturbed" / "bundle", arguments.rate, arguments.gap
            )
            ray.shutdown()
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
