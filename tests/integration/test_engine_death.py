"""An engine that dies more often than it may: the run ends with one line, and what was answered stays."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest
from small_run import SLOW, SMALL

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives import engine
from llm4sbr_ray.perspectives.render import render, unique_prompts

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def kill_engine_once_it_has_answered(done: Store, killed: list[int], stop: threading.Event) -> None:
    while not killed and not stop.wait(0.1):
        if not done.files(suffix=".parquet"):
            continue
        for process in psutil.Process().children(recursive=True):
            if "EngineCore" in " ".join(process.cmdline()):  # what the kernel kills where memory runs out
                process.kill()
                killed.append(process.pid)


def test_a_dying_engine_is_not_started_for_ever(pipeline_run: Run, tmp_path: Path) -> None:
    config = load_config([*SMALL, *SLOW, "--perspectives.engine.max_restarts", "0"]).perspectives
    data, work = pipeline_run.below("data"), Store(str(tmp_path))
    prompts, asked, answers, done = (work.below(name) for name in ("prompts", "asked", "answers", "done"))
    render(data, prompts, "none", config)
    assert unique_prompts(prompts, asked, config.engine.write_rows) > 1000

    killed: list[int] = []
    stop = threading.Event()
    watch = threading.Thread(target=kill_engine_once_it_has_answered, args=(done, killed, stop))
    watch.start()
    try:
        with pytest.raises(UserError, match=r"died more than perspectives\.engine\.max_restarts times"):
            engine.ask(asked, answers, done, pipeline_run.uri("pocket-lm"), data.uri(), config)
    finally:
        stop.set()
        watch.join()
    assert killed
    assert len(work.read_table("answers")) >= 128
