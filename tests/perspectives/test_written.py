"""Rows that an earlier try has written are left out by their keys, and no others."""

from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.perspectives.written import checkpoint, numbers


def test_keys_have_numbers_of_their_own() -> None:
    keys = pa.chunked_array([[f"{number:032x}" for number in range(5_000)], ["", "é"]])
    assert len(set(numbers(keys).tolist())) == len(keys)


@pytest.mark.integration
def test_a_second_try_writes_only_what_the_first_has_not(ray_cluster: None, tmp_path: Path) -> None:
    asked, done = Store(str(tmp_path / "asked")), Store(str(tmp_path / "done"))

    def write(rows: range, answers: Store) -> list[str]:
        """All of `rows` are asked; the keys that were written."""
        for part, start in enumerate(range(0, rows.stop, 10)):
            table = pa.table({"prompt_key": [f"{n:032x}" for n in range(start, start + 10)]})
            asked.write_table(table, f"part-{part}.parquet")
        context = ray.data.DataContext.get_current()
        context.checkpoint_config = checkpoint(done)
        try:
            ray.data.read_parquet(asked.path(), filesystem=asked.fs).map_batches(lambda batch: batch).write_parquet(
                answers.path(), filesystem=answers.fs
            )
        finally:
            context.checkpoint_config = None
        paths = answers.files(suffix=".parquet")
        return sorted(answers.read_table("")["prompt_key"].to_pylist()) if paths else []  # type: ignore[type-var]

    keys = [f"{n:032x}" for n in range(50)]
    assert write(range(30), Store(str(tmp_path / "first"))) == keys[:30]
    assert write(range(50), Store(str(tmp_path / "second"))) == keys[30:]
    assert write(range(50), Store(str(tmp_path / "third"))) == []
