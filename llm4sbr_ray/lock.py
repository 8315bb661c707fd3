"""One driver a run: a second one on the same run is refused before it does anything.

    with exclusive(run): ...

The lock is an object in the run's folder, ``lock.json``, that its owner rewrites every few seconds. Object stores have
no file locks and a killed driver cannot clean up, so a lock without a sign of life for a minute counts as given up, and
that of a process of this machine that has ended counts as given up at once. `Run.stage` asks before each commit whether
the lock is still its own: a driver that slept through its minute does not write over its successor's work.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from llm4sbr_ray.artifacts import LOCK_FILE, Run
from llm4sbr_ray.errors import UserError

BEAT_S = 10.0
STALE_S = 60.0
SETTLE_S = 0.3  # two drivers that start together: both write, then the last to have written goes on


@contextmanager
def exclusive(run: Run, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> Iterator[None]:
    """Hold the run's lock.

    Raises
    ------
    UserError
        Another driver holds it: says which.
    """
    found = read_lock(run)
    if found is not None and not _is_given_up(found, stale_s):
        raise UserError(_refusal(run, found, stale_s))
    owner = uuid.uuid4().hex
    mine = {
        "owner": owner,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _beat(run, mine)
    time.sleep(SETTLE_S)
    found = read_lock(run)
    if found is None or found["owner"] != owner:
        raise UserError(_refusal(run, found or mine, stale_s))
    run.owner = owner
    stop = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(run, mine, beat_s, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if run.owns_lock():
            run.delete(LOCK_FILE)
        run.owner = None


def read_lock(run: Run) -> dict[str, Any] | None:
    """Who works on the run: owner, host, process, since (ISO time), beat (milliseconds since epoch); None: nobody."""
    try:
        return dict(run.read_json(LOCK_FILE))
    except FileNotFoundError:
        return None


def _beat(run: Run, mine: dict[str, Any]) -> None:
    run.write_json({**mine, "beat": now_ms()}, LOCK_FILE)


def now_ms() -> int:
    """Milliseconds since epoch. Of one width: a reader asks an object store for the size first, then for the bytes."""
    return int(time.time() * 1000)


def _keep_beating(run: Run, mine: dict[str, Any], beat_s: float, stop: threading.Event) -> None:
    while not stop.wait(beat_s):
        try:
            if not run.owns_lock():
                return  # taken over: the next commit will say so
            _beat(run, mine)
        except OSError as error:  # storage that is away for a while: the stage itself will tell if it stays away
            print(f"{run.uri(LOCK_FILE)}: {error}", flush=True)


def _is_given_up(found: dict[str, Any], stale_s: float) -> bool:
    if found["host"] == socket.gethostname():
        try:
            os.kill(found["process"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it runs, as another user
    return bool(now_ms() - found["beat"] > 1000 * stale_s)


def _refusal(run: Run, found: dict[str, Any], stale_s: float) -> str:
    return (
        f"{run.uri()}: process {found['process']} on {found['host']} has been working on this run since "
        f"{found['since']}. Wait for it, stop it, or start this one under another --name. (If it was killed on another "
        f"machine, the run is free {stale_s:.0f} s after that.)"
    )
