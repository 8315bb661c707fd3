"""The run directory: a stage is committed whole or not at all, and never done twice."""

from pathlib import Path
from typing import Any

import pytest

from llm4sbr_ray.artifacts import Run, Stage
from llm4sbr_ray.config import DataConfig, RunConfig
from llm4sbr_ray.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunConfig(name="r", storage=str(tmp_path), data=DataConfig(source="demo")))


def writes(text: str, calls: list[str]) -> Any:
    def body(stage: Stage) -> dict[str, int]:
        calls.append(text)
        stage.store.write_bytes(text.encode(), "out", "file")
        return {"rows": 1}

    return body


def test_a_committed_stage_is_skipped(run: Run) -> None:
    calls: list[str] = []
    assert run.stage("s", outputs=["out"], settings=1, body=writes("a", calls))
    assert not run.stage("s", outputs=["out"], settings=1, body=writes("b", calls))
    assert calls == ["a"]
    assert run.read_bytes("out", "file") == b"a"
    assert run.manifest()["stages"]["s"]["status"] == "done"
    assert not run.exists(".partial", "s")


def test_other_settings_or_another_input_do_it_again(run: Run) -> None:
    calls: list[str] = []
    run.stage("s", outputs=["out"], settings=1, body=writes("a", calls))
    run.stage("t", outputs=["t"], settings=1, after=["s"], body=lambda s: s.store.write_bytes(b"", "t") or {})
    before = run.manifest()["stages"]["t"]["input_hash"]
    run.stage("s", outputs=["out"], settings=2, body=writes("b", calls))
    assert calls == ["a", "b"]
    assert run.read_bytes("out", "file") == b"b"
    run.stage("t", outputs=["t"], settings=1, after=["s"], body=lambda s: s.store.write_bytes(b"", "t") or {})
    assert run.manifest()["stages"]["t"]["input_hash"] != before


def test_a_failing_stage_leaves_the_old_output_and_keeps_what_it_wrote(run: Run) -> None:
    calls: list[str] = []
    run.stage("s", outputs=["out"], settings=1, body=writes("a", calls))

    def dies(stage: Stage) -> dict[str, int]:
        stage.store.write_bytes(b"half", "work")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.stage("s", outputs=["out"], settings=2, body=dies)
    assert run.read_bytes("out", "file") == b"a"
    seen: list[bool] = []

    def goes_on(stage: Stage) -> dict[str, int]:
        seen.append(stage.resumed() and stage.store.exists("work"))
        return writes("b", calls)(stage)  # type: ignore[no-any-return]

    run.stage("s", outputs=["out"], settings=2, body=goes_on)
    assert seen == [True]
    assert run.read_bytes("out", "file") == b"b"


def test_a_kill_between_completion_and_commit_is_finished_without_the_body(run: Run) -> None:
    wanted = run.input_hash(1, [])
    partial = run.below(".partial/s")
    partial.write_json(wanted, "inputs.json")
    partial.write_bytes(b"a", "out", "out", "file")
    partial.write_json({"status": "done", "input_hash": wanted, "rows": 5, "seconds": 1.0}, "complete.json")
    calls: list[str] = []
    assert run.stage("s", outputs=["out"], settings=1, body=writes("b", calls))
    assert calls == []
    assert run.read_bytes("out", "file") == b"a"
    assert run.manifest()["stages"]["s"]["rows"] == 5


def test_files_of_other_inputs_are_not_resumed(run: Run) -> None:
    partial = run.below(".partial/s")
    partial.write_json("another hash", "inputs.json")
    partial.write_bytes(b"old", "out", "work")
    run.stage("s", outputs=["out"], settings=1, body=lambda stage: writes(str(stage.resumed()), [])(stage))
    assert run.read_bytes("out", "file") == b"False"


def test_a_stage_whose_input_is_missing_says_which(run: Run) -> None:
    with pytest.raises(UserError, match="'ingest' has not been run"):
        run.stage("s", outputs=["out"], settings=1, after=["ingest"], body=writes("a", []))


def test_a_stage_that_forgets_an_output_is_not_committed(run: Run) -> None:
    with pytest.raises(RuntimeError, match="did not write 'out'"):
        run.stage("s", outputs=["out"], settings=1, body=lambda stage: {})
    assert run.manifest()["stages"]["s"]["status"] == "running"
