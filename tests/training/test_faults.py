"""What goes wrong in a training without workers: a storage that is full or no folder, a loss that is not a number."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from planted_run import planted_config, planted_run

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.errors import StorageError, UserError
from llm4sbr_ray.training.trainer import train


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to write more than this to a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_error_and_training_goes_on_after_it(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn",), epochs=2))
    with (
        no_file_above(20_000),
        pytest.raises(StorageError, match=r"checkpoint\.safetensors cannot be written: ") as error,
    ):
        train(run)
    assert isinstance(error.value, UserError)  # exit status 2
    assert "\n" not in str(error.value)
    assert not [path for path in run.files() if path.endswith(".tmp")]
    assert run.manifest()["stages"]["ingest"]["status"] == "done"
    train(run)
    assert run.exists("train/srgnn/seed-0/model.safetensors")


def test_a_storage_that_is_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/planted/run\.json cannot be written: .*access"):
        Store(str(tmp_path / "file" / "planted")).write_json({}, "run.json")


def test_the_error_of_a_worker_reaches_the_driver_as_it_is() -> None:
    error = StorageError.of("s3://bucket/run", OSError(28, "No space left\non device"))
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301  # as Ray sends it
    assert (type(arrived), str(arrived)) == (StorageError, str(error))


def test_the_samples_of_a_batch_that_is_not_finite_are_written_down(tmp_path: Path) -> None:
    run: Run = planted_run(planted_config(str(tmp_path), models=("srgnn",), learning_rate=1e30))
    with pytest.raises(UserError, match=r"epoch \d+: .* not finite .* samples train\d+:\d+") as error:
        train(run)
    keys = json.loads(Path(str(error.value).rsplit(" ", 1)[1]).read_text())
    assert len(keys) == run.config.train.batch_size
    assert set(keys) <= set(run.read_table("data", "train")["sample_key"].to_pylist())
    assert ", ".join(keys[:3]) in str(error.value)
