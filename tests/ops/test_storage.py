"""The run directory and its lock on a local disk and on S3 over HTTP: the same behaviour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4sbr_ray.artifacts import LOCK_FILE, Run, Stage, Store
from llm4sbr_ray.cli import main
from llm4sbr_ray.config import DataConfig, Engine, Perspectives, RunConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.lock import exclusive, now_ms, read_lock
from llm4sbr_ray.perspectives.engine import processor_config

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3"))


def make_run(storage: str) -> Run:
    return Run(RunConfig(name="r", storage=storage, data=DataConfig(source="demo")))


def writes(text: str) -> Any:
    def body(stage: Stage) -> dict[str, int]:
        for name in ("a", "b/c"):
            stage.store.write_bytes(text.encode(), "out", name)
        return {"rows": 2}

    return body


def contents(run: Run) -> dict[str, bytes]:
    names = [path.removeprefix(run.path("out/")) for path in run.files("out")]
    return {name: run.read_bytes("out", name) for name in names}


# ---- the store and its stages


def test_a_store_gives_back_what_it_was_given(storage: str) -> None:
    store = Store(f"{storage}/deep/er")
    assert not store.exists("x")
    assert store.files() == []
    store.write_json({"ü": 1}, "x", "y.json")
    store.write_json({"ü": 2}, "x", "y.json")
    assert store.read_json("x", "y.json") == {"ü": 2}
    table = pa.table({"n": list(range(1000))})
    for part in ("t/0.parquet", "t/1.parquet"):
        store.write_table(table, part)
    assert store.read_table("t").equals(pa.concat_tables([table, table]))
    assert store.below("t").files() == [store.path("t", f"{n}.parquet") for n in (0, 1)]
    store.delete("t")
    assert store.below("t").files() == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")


def test_a_stage_is_committed_whole_replaced_whole_and_skipped(storage: str) -> None:
    run = make_run(storage)
    assert run.stage("s", outputs=["out"], settings=1, body=writes("one"))
    assert not run.stage("s", outputs=["out"], settings=1, body=writes("two"))
    assert set(contents(run).values()) == {b"one"}

    def dies(stage: Stage) -> dict[str, int]:
        stage.store.write_bytes(b"half", "out", "d")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        run.stage("s", outputs=["out"], settings=2, body=dies)
    assert set(contents(run)) == {"a", "b/c"}

    def goes_on(stage: Stage) -> dict[str, int]:
        assert stage.resumed()
        return dict(writes("three")(stage))

    assert run.stage("s", outputs=["out"], settings=2, body=goes_on)
    assert contents(run) == {"a": b"three", "b/c": b"three", "d": b"half"}
    assert run.files(".partial") == []
    assert run.manifest()["stages"]["s"]["status"] == "done"


def test_a_move_that_was_cut_off_is_finished(storage: str) -> None:
    run = make_run(storage)
    wanted = run.input_hash(1, [])
    partial = run.below(".partial/s")
    partial.write_json(wanted, "inputs.json")
    partial.write_json({"status": "done", "input_hash": wanted, "rows": 2, "seconds": 1.0}, "complete.json")
    run.write_bytes(b"moved", "first", "a")  # this output was moved before the kill
    partial.write_bytes(b"waits", "out", "second", "a")
    assert run.stage("s", outputs=["first", "second"], settings=1, body=writes("never"))
    assert (run.read_bytes("first", "a"), run.read_bytes("second", "a")) == (b"moved", b"waits")


def test_options_in_a_uri_are_refused_rather_than_lost() -> None:
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        Store("s3://bucket/runs?endpoint_override=127.0.0.1:9000")


# ---- the lock


def test_a_second_driver_is_refused_and_a_third_may_when_it_is_done(storage: str) -> None:
    run, other = make_run(storage), make_run(storage)
    with exclusive(run):
        held = read_lock(run)
        assert held is not None
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* another --name"), exclusive(other):
            pass
        assert read_lock(run) == held
        run.stage("s", outputs=["out"], settings=1, body=writes("one"))
    assert read_lock(run) is None
    with exclusive(other):
        pass


def test_the_lock_of_a_driver_that_is_still_beating_outlives_its_minute(storage: str) -> None:
    run = make_run(storage)
    with exclusive(run, beat_s=0.1):
        first = read_lock(run)
        deadline = time.monotonic() + 20
        while (read_lock(run) or {}).get("beat") == (first or {})["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_lock_without_a_sign_of_life_is_taken_over(storage: str) -> None:
    run = make_run(storage)
    lock = {"owner": "x", "host": "elsewhere", "process": 1, "since": "2026-01-01T00:00:00+00:00"}
    run.write_json({**lock, "beat": now_ms() - 50_000}, LOCK_FILE)
    with pytest.raises(UserError, match="on elsewhere"), exclusive(run):
        pass
    run.write_json({**lock, "beat": now_ms() - 61_000}, LOCK_FILE)
    with exclusive(run):
        assert (read_lock(run) or {})["owner"] == run.owner


def test_a_killed_driver_of_this_machine_frees_the_run_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal; from llm4sbr_ray.config import *; from llm4sbr_ray.artifacts import Run\n"
        "from llm4sbr_ray.lock import exclusive\n"
        f"run = Run(RunConfig(name='r', storage={str(tmp_path)!r}, data=DataConfig(source='demo')))\n"
        "with exclusive(run): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    run = make_run(str(tmp_path))
    assert read_lock(run) is not None
    with exclusive(run):
        pass


def test_a_driver_that_lost_its_lock_commits_nothing(storage: str) -> None:
    run = make_run(storage)
    run.stage("s", outputs=["out"], settings=1, body=writes("successor"))
    with exclusive(run, beat_s=60):

        def sleeps(stage: Stage) -> dict[str, int]:
            run.write_json({"owner": "successor"}, LOCK_FILE)
            return dict(writes("sleeper")(stage))

        with pytest.raises(UserError, match="taken the run over"):
            run.stage("s", outputs=["out"], settings=2, body=sleeps)
    assert set(contents(run).values()) == {b"successor"}
    assert run.read_json(LOCK_FILE) == {"owner": "successor"}


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(ROOT / "configs" / "demo.yaml"), "--storage", str(tmp_path), "--name", "r"]
    with exclusive(make_run(str(tmp_path))):
        assert main(lambda run: pytest.fail("it ran"), arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1


def test_the_manifest_holds_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    run = make_run(str(tmp_path))
    run.stage("s", outputs=["out"], settings=1, body=writes("one"))
    text = json.dumps(run.manifest())
    assert "a-secret" not in text


def test_the_engine_finds_an_adapter_in_a_bucket(
    s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")  # removed at the end, whoever sets it
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    Store(f"{s3}/adapters/shop").write_json({"r": 24}, "adapter_config.json")
    cpu = Engine(device="cpu")
    config = Perspectives(model="/models/base", lora=f"{s3}/adapters/shop", engine=cpu)
    built = processor_config("/models/base", config)
    assert built.dynamic_lora_loading_path == f"pyarrow-{s3}/adapters"
    assert built.engine_kwargs["enable_lora"]
    assert built.engine_kwargs["max_lora_rank"] == 32  # the least that vLLM has of 24 and more
    assert built.runtime_env["env_vars"]["AWS_ENDPOINT_URL_S3"] == s3_server["AWS_ENDPOINT_URL"]
    own = config.model_copy(update={"lora": None})
    assert "enable_lora" not in processor_config("/models/base", own).engine_kwargs
