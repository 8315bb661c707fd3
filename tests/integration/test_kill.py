"""kill -9 of the driver in the middle of the LLM stage: nothing answered is lost or asked again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from small_run import ROOT, SMALL

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def start(storage: Path) -> subprocess.Popen[bytes]:
    """`jobs/infer.py` as a user starts it, on a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    command = [sys.executable, "jobs/infer.py", *SMALL, "--storage", str(storage)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def written(answers: Store) -> pa.Table | None:
    files = answers.files(suffix=".parquet")
    return answers.read_table("").sort_by("prompt_key") if files else None


def test_a_killed_llm_stage_goes_on(pipeline_run: Run, tmp_path: Path) -> None:
    run = Run(load_config([*SMALL, "--storage", str(tmp_path)]))
    for name in ("data", "pocket-lm"):  # the stages before it, as the undisturbed run committed them
        run.fs.create_dir(run.path(name))
        pa.fs.copy_files(pipeline_run.path(name), run.path(name))
    manifest = pipeline_run.manifest()
    manifest["stages"] = {name: manifest["stages"][name] for name in ("ingest", "pocket-lm")}
    run.write_json(manifest, "run.json")

    work = run.below(".partial/perspectives/out/work")
    done = work.below("done", "round-0")
    process = start(tmp_path)
    deadline = time.monotonic() + 400
    while not [path for path in done.files(suffix=".parquet") if "pending" not in path]:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "no block was committed"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = work.read_table("done", "round-0")["prompt_key"].to_pylist()
    asked = work.read_table("asked", "round-0")["prompt_key"].to_pylist()
    assert 0 < len(before) < len(asked)
    kept = {row["prompt_key"]: row["answer"] for row in work.read_table("answers", "round-0").to_pylist()}

    assert start(tmp_path).wait(timeout=500) == 0
    equal = total = 0
    for view in ("long-term", "short-term"):
        ours = run.read_table("perspectives", view).to_pylist()
        undisturbed = pipeline_run.read_table("perspectives", view).to_pylist()
        assert [row["sample_key"] for row in ours] == [row["sample_key"] for row in undisturbed]
        for row in ours:
            if row["prompt_key"] in before:
                assert row["answer"] == kept[row["prompt_key"]]
        equal += sum(a["answer"] == b["answer"] for a, b in zip(ours, undisturbed, strict=True))
        total += len(ours)
    # The engine's sums depend in their last bits on which prompts share a batch, which can turn a near tie.
    assert equal >= 0.99 * total
