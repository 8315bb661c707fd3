"""Jobs as a user submits them to a cluster of two nodes: token, upload, secrets, S3, stop and resubmission."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
SMALL = ["--config", "configs/demo.yaml", "--data.demo.sessions", "120", "--data.demo.items", "60"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own and a second node, with token authentication; gives the environment of its clients."""
    subprocess.run([RAY, "get-auth-token", "--generate"], check=True, capture_output=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    clean |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"  # an activated environment: a job's `python`
    gcs, dashboard = free_port(), free_port()
    folder = f"/tmp/ray-job-{os.getpid()}"  # short: sockets below it have a limit of 107 characters
    common = [RAY, "start", "--block", "--num-cpus=4", "--object-store-memory=200000000"]
    head = [*common, "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    head += [f"--{name}-port={free_port()}" for name in ("ray-client-server", "dashboard-agent-listen")]
    other = [*common, f"--address=127.0.0.1:{gcs}", f"--dashboard-agent-listen-port={free_port()}"]
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        started.append(subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        start(head)
        deadline = time.monotonic() + 90
        while socket.socket().connect_ex(("127.0.0.1", dashboard)):
            assert started[0].poll() is None, "Ray ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        start(other)
        yield {**clean, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        for process in started[::-1]:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()  # it is thrown away: no need for Ray's orderly end, which takes half a minute
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def working_copy(tmp_path: Path) -> Path:
    """What a user has on a laptop."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("llm4sbr_ray", "jobs", "configs", ".gitignore", ".rayignore"):
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    for ignored in ("runs/demo", "docs", ".venv"):  # of these none may be sent
        (copy / ignored).mkdir(parents=True)
        (copy / ignored / "large.bin").write_bytes(os.urandom(1000))
    return copy


def read(arguments: list[str]) -> Run:
    return Run(load_config(["--config", str(ROOT / "configs" / "demo.yaml"), *arguments[2:]]))


def ray_job(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([RAY, "job", *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(
    folder: Path, environment: dict[str, str], secrets: dict[str, str], *entrypoint: str, options: Sequence[str] = ()
) -> tuple[int, str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": secrets})]
    command += options
    done = subprocess.run(
        [*command, "--", *entrypoint], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_from_a_working_copy_to_a_bucket(
    cluster: dict[str, str], s3: str, s3_server: dict[str, str], working_copy: Path
) -> None:
    arguments = [*SMALL, "--storage", f"{s3}/runs"]
    show = "import os, llm4sbr_ray; print('code:', llm4sbr_ray.__path__[0]); print('sent:', sorted(os.listdir()))"
    script = f'python jobs/ingest.py {" ".join(arguments)} && python -c "{show}"'

    code, said = submit(working_copy, cluster, s3_server, "bash", "-c", script)
    assert code == 0, said
    assert f"run: {s3}/runs/demo" in said  # progress of the job, at the submitter
    assert "[ingest] started" in said
    (sent,) = [line for line in said.splitlines() if line.startswith("sent: ")]
    assert not any(name in sent for name in ("runs", "docs", ".venv"))
    (where,) = [line for line in said.splitlines() if line.startswith("code: ")]
    assert "working_dir_files" in where  # the code that was sent runs, not the code that is installed

    run = read(arguments)
    manifest = run.manifest()
    assert manifest["stages"]["ingest"]["status"] == "done"
    assert len(run.read_table("data", "train")) == manifest["stages"]["ingest"]["counts"]["train_samples"]
    assert run.files(".partial") == []
    assert not run.exists("lock.json")
    secret = s3_server["AWS_SECRET_ACCESS_KEY"]
    assert secret not in json.dumps(manifest)
    assert secret not in said

    code, said = submit(
        working_copy, cluster, s3_server, "python", "jobs/ingest.py", *arguments, "--train.epochs", "none"
    )
    assert code != 0
    assert "error: configs/demo.yaml: train.epochs" in said

    without = {k: v for k, v in cluster.items() if k != "RAY_AUTH_MODE"} | {
        "RAY_AUTH_TOKEN": "guessed",
        "RAY_AUTH_MODE": "token",
    }
    code, said = submit(working_copy, without, {}, "true")
    assert code != 0
    assert "authentication token" in said.lower()


def test_a_stopped_pipeline_goes_on_and_ends_with_its_table(
    cluster: dict[str, str], s3: str, s3_server: dict[str, str], working_copy: Path, tmp_path: Path
) -> None:
    """All stages with a bucket for storage: the pocket LM, too, is loaded from there."""
    arguments = [*SMALL, "--storage", f"{s3}/runs", "--data.samples", "last-item", "--perspectives.pocket.steps", "5"]
    arguments += ["--perspectives.engine.write_rows", "32", "--perspectives.schedule_timeout_s", "120"]
    arguments += ["--train.models", "srgnn+llm4sbr", "--train.seeds", "0", "--train.epochs", "1"]
    arguments += ["--train.workers", "1"]
    arguments += [
        "--perspectives.engine.engine_kwargs",
        '{"enforce_eager": true, "distributed_executor_backend": "uni"}',
    ]
    job = ("python", "jobs/pipeline.py", *arguments)
    environment = s3_server | {"HF_HOME": str(tmp_path / "models")}  # where the model from the bucket is copied to
    code, said = submit(working_copy, cluster, environment, *job, options=["--no-wait", "--submission-id", "first"])
    assert code == 0, said
    run = read(arguments)
    deadline = time.monotonic() + 300
    while run.manifest()["stages"].get("perspectives", {}).get("status") != "running":
        assert "FAILED" not in ray_job(cluster, "status", "first"), ray_job(cluster, "logs", "first")
        assert time.monotonic() < deadline, ray_job(cluster, "logs", "first")
        time.sleep(0.5)
    ray_job(cluster, "stop", "first")
    logs = ray_job(cluster, "logs", "first")
    assert "[pocket-lm] step 5/5" in logs
    assert "Recall" not in logs

    environment |= {"RAY_LOGGING_CONFIG_ENCODING": "JSON"}
    code, said = submit(working_copy, cluster, environment, *job, options=["--submission-id", "second"])
    assert code == 0, said
    logs = ray_job(cluster, "logs", "second")
    records = [json.loads(line) for line in logs.splitlines() if line.startswith('{"time"')]
    assert {record["run"] for record in records} == {run.uri()}
    assert {record["job_id"] for record in records if record["stage"]} == {records[-1]["job_id"]} != {None}
    said_of = {(record["stage"], record["message"].split(" (")[0]) for record in records}
    assert {("ingest", "done before, skipped"), ("pocket-lm", "done before, skipped")} <= said_of
    assert {"perspectives", "text", "intents", "train/srgnn+llm4sbr/seed-0", "evaluate", "export"} <= {
        record["stage"] for record in records
    }
    assert any("recall@20" in record["message"] for record in records)  # the final table
    assert f"report: {run.uri('report', 'index.html')}" in {record["message"] for record in records}
    assert {stage["status"] for stage in run.manifest()["stages"].values()} == {"done"}
    assert run.manifest()["stages"]["perspectives"]["perspectives"]["long-term"]["errors"] == 0
    assert run.files("bundle", suffix=".safetensors")
    assert s3_server["AWS_SECRET_ACCESS_KEY"] not in said + logs + json.dumps(run.manifest())
