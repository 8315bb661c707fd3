"""What Prometheus reads from a node: every metric, and nothing on the dashboard that is not there."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from llm4sbr_ray import metrics

pytestmark = pytest.mark.integration
DASHBOARD = Path(__file__).parent.parent.parent / "grafana" / "llm4sbr.json"
ANSWER = {"model": "m", "version": "v1", "timings_ms": {"encode": 2.2, "total": 4.0}}
DRAWN = re.compile(r"\bray_llm4sbr_\w+")


def exported(worker: str) -> dict[str, float]:
    """Samples of one worker, by name and labels: other tests on this cluster count too."""
    import ray

    found: dict[str, float] = {}
    for node in filter(lambda node: node["Alive"], ray.nodes()):  # other tests kill some
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as page:
            for line in page.read().decode().splitlines():
                if line.startswith("ray_llm4sbr_") and f'WorkerId="{worker}"' in line:
                    name, value = line.rsplit(" ", 1)
                    wanted = re.findall(r'(?<=[{,])(?:place|result|served_by|stage|version)="[^"]*"', name)
                    key = f"{name.split('{')[0]} {' '.join(sorted(wanted))}".strip()
                    found[key] = found.get(key, 0) + float(value)
    return found


def test_a_scrape_finds_every_metric_and_the_dashboard_draws_no_other(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    class Node:
        def work(self) -> None:
            for stage in ("train/srgnn/seed-0", "train/srgnn/seed-1"):
                metrics.count_stage(stage, 50, 1.5)
            metrics.count_prompts(10, 1, 700, 60)
            metrics.count_answer({**ANSWER, "served_by": "model", "llm_clicks": 3}, 5)
            metrics.count_answer({**ANSWER, "served_by": "model", "llm_clicks": None}, 5)
            metrics.count_answer({**ANSWER, "served_by": "popularity", "llm_clicks": None}, 0)
            metrics.count_enrichment("dropped")
            metrics.observe_enrichment(0.2)
            metrics.show_enrichment_queue("replica", 7)

        def name(self) -> str:
            return ray.get_runtime_context().get_worker_id()

    node = Node.remote()  # it stays: metrics of a process that ends go with it
    ray.get(node.work.remote())
    worker = ray.get(node.name.remote())
    deadline = time.monotonic() + 60
    while not (found := exported(worker)).get("ray_llm4sbr_generated_tokens_total"):
        assert time.monotonic() < deadline, f"not exported: {sorted(found)}"
        time.sleep(1)
    assert found['ray_llm4sbr_rows_total stage="train"'] == 100
    assert found['ray_llm4sbr_stage_seconds_total stage="train"'] == 3
    assert found["ray_llm4sbr_prompts_total"] == 10
    assert found["ray_llm4sbr_prompt_errors_total"] == 1
    assert found["ray_llm4sbr_prompt_tokens_total"] == 700
    assert found['ray_llm4sbr_cache_lookups_total result="hit"'] == 1
    assert found['ray_llm4sbr_cache_lookups_total result="miss"'] == 1
    assert found['ray_llm4sbr_recommendations_total served_by="model" version="v1"'] == 2
    assert found['ray_llm4sbr_latency_ms_count stage="total"'] == 3
    assert found['ray_llm4sbr_latency_ms_count stage="encode"'] == 3  # Ray exports sums by the buckets' middles
    assert found["ray_llm4sbr_intent_age_clicks_count"] == 1
    assert found['ray_llm4sbr_enrichment_total result="dropped"'] == 1
    assert found['ray_llm4sbr_enrichment_queue place="replica"'] == 7
    names = {key.split()[0] for key in found}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = {name for panel in panels for target in panel["targets"] for name in DRAWN.findall(target["expr"])}
    assert drawn <= names
    counters = {f"ray_{name}_total" for name in metrics.COUNTERS}
    histograms = {f"ray_{name}_bucket" for name in metrics.HISTOGRAMS}
    assert drawn == counters | histograms | {f"ray_{name}" for name in metrics.GAUGES}
    assert all(panel["targets"] for panel in panels)
