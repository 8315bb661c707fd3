"""What a job prints, as JSON lines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import ray

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cli import main
from llm4sbr_ray.config import load_config
from llm4sbr_ray.lock import exclusive
from llm4sbr_ray.logs import SWITCH, JsonLines, json_lines

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"


def test_each_line_is_a_record_that_names_run_and_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "JSON")
    with json_lines("s3://b/r"):
        print('[train/srgnn+llm4sbr/seed-0] epoch 1: loss 4.5\n\nan "ü"')
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    job = ray.get_runtime_context().get_job_id() if ray.is_initialized() else None  # other tests may have started Ray
    assert (first["run"], first["level"], first["job_id"]) == ("s3://b/r", "INFO", job)
    assert (first["stage"], first["message"]) == ("train/srgnn+llm4sbr/seed-0", "epoch 1: loss 4.5")
    assert (second["stage"], second["message"]) == (None, 'an "ü"')
    assert first["time"] <= second["time"]


def test_what_ends_a_job_is_a_record_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SWITCH, "JSON")
    arguments = ["--config", str(DEMO), "--storage", str(tmp_path), "--name", "r"]
    run = Run(load_config(arguments))
    with exclusive(run):
        assert main(lambda run: pytest.fail("it ran"), arguments) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["message"] == f"run: {run.uri()}"
    record = json.loads(said.err)
    assert (record["level"], record["run"]) == ("ERROR", run.uri())
    assert record["message"].startswith("error: ")


def test_without_the_switch_people_read_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    with json_lines("r"):
        print("[ingest] started")
    assert capsys.readouterr().out == "[ingest] started\n"


def test_lines_of_several_threads_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    stream = JsonLines(sys.stdout, "r", "INFO")
    together = threading.Barrier(4)

    def work(name: str) -> None:
        together.wait()
        for _ in range(200):
            print(name, name, name, file=stream)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(messages) == sorted(f"{name} {name} {name}" for name in "abcd" for _ in range(200))
