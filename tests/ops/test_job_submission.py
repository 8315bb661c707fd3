"""The stage "ingest" as a user submits it to a cluster: token, upload, secrets, S3, and a second submission."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import load_config

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
SMALL = ["--config", "configs/demo.yaml", "--data.demo.sessions", "120", "--data.demo.items", "60"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own, with token authentication; gives the environment of its clients."""
    subprocess.run([RAY, "get-auth-token", "--generate"], check=True, capture_output=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    clean |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"  # an activated environment: a job's `python`
    gcs, dashboard = free_port(), free_port()
    folder = f"/tmp/ray-job-{os.getpid()}"  # short: sockets below it have a limit of 107 characters
    command = [RAY, "start", "--head", "--block", "--num-cpus=8", "--object-store-memory=200000000"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--{name}-port={free_port()}" for name in ("ray-client-server", "dashboard-agent-listen")]
    process = subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while socket.socket().connect_ex(("127.0.0.1", dashboard)):
            assert process.poll() is None, "Ray ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield {**clean, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # it is thrown away: no need for Ray's orderly end, which takes half a minute
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def submit(folder: Path, environment: dict[str, str], secrets: dict[str, str], *entrypoint: str) -> tuple[int, str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": secrets})]
    done = subprocess.run(
        [*command, "--", *entrypoint], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_from_a_working_copy_to_a_bucket(
    head: dict[str, str], s3: str, s3_server: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("llm4sbr_ray", "jobs", "configs", ".gitignore", ".rayignore"):
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    for ignored in ("runs/demo", "docs", ".venv"):  # of these none may be sent
        (copy / ignored).mkdir(parents=True)
        (copy / ignored / "large.bin").write_bytes(os.urandom(1000))
    arguments = [*SMALL, "--storage", f"{s3}/runs"]
    show = "import os, llm4sbr_ray; print('code:', llm4sbr_ray.__path__[0]); print('sent:', sorted(os.listdir()))"
    script = f'python jobs/ingest.py {" ".join(arguments)} && python -c "{show}"'

    code, said = submit(copy, head, s3_server, "bash", "-c", script)
    assert code == 0, said
    assert f"run: {s3}/runs/demo" in said  # progress of the job, at the submitter
    assert "[ingest] started" in said
    (sent,) = [line for line in said.splitlines() if line.startswith("sent: ")]
    assert not any(name in sent for name in ("runs", "docs", ".venv"))
    (where,) = [line for line in said.splitlines() if line.startswith("code: ")]
    assert "working_dir_files" in where  # the code that was sent runs, not the code that is installed

    run = Run(load_config(["--config", str(ROOT / "configs" / "demo.yaml"), *SMALL[2:], "--storage", f"{s3}/runs"]))
    manifest = run.manifest()
    assert manifest["stages"]["ingest"]["status"] == "done"
    assert len(run.read_table("data", "train")) == manifest["stages"]["ingest"]["counts"]["train_samples"]
    assert run.files(".partial") == []
    assert not run.exists("lock.json")
    secret = s3_server["AWS_SECRET_ACCESS_KEY"]
    assert secret not in json.dumps(manifest)
    assert secret not in said

    code, said = submit(copy, head, s3_server, "python", "jobs/ingest.py", *arguments)
    assert code == 0, said
    assert "[ingest] done before, skipped" in said

    code, said = submit(copy, head, s3_server, "python", "jobs/ingest.py", *arguments, "--train.epochs", "none")
    assert code != 0
    assert "error: configs/demo.yaml: train.epochs" in said

    without = {k: v for k, v in head.items() if k != "RAY_AUTH_MODE"} | {
        "RAY_AUTH_TOKEN": "guessed",
        "RAY_AUTH_MODE": "token",
    }
    code, said = submit(copy, without, {}, "true")
    assert code != 0
    assert "authentication token" in said.lower()
