"""Which sessions train, validate and test: reproducible; random parts do not depend on the order of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm4sbr_ray.config import Split

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Moments:
    """When S sessions were: by timestamp (microseconds, 0 where there is none), then by row of the source."""

    time: Ints  # of S sessions
    order: Ints

    def sorted(self) -> Ints:
        """Positions of the sessions, the earliest first."""
        order: Ints = np.lexsort((self.order, self.time))
        return order

    def since(self, moment: tuple[int, int]) -> Bools:
        """Whether each session is at `moment` or later."""
        time, order = moment
        later: Bools = (self.time > time) | ((self.time == time) & (self.order >= order))
        return later

    def at(self, position: int) -> tuple[int, int]:
        return int(self.time[position]), int(self.order[position])

    def of(self, chosen: Bools) -> Moments:
        return Moments(self.time[chosen], self.order[chosen])


@dataclass(frozen=True)
class Cuts:
    """The moments at which splits by time begin; None where the split is made in another way."""

    test: tuple[int, int] | None
    valid: tuple[int, int] | None


def unit_hash(session_ids: Sequence[str], seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each id: uniform, the same in every process, independent between purposes."""
    key = f"{seed}:{purpose}".encode()
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in session_ids)
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)) / 2.0**53


def is_test(
    split: Split,
    seed: int,
    session_ids: Sequence[str],
    values: Sequence[str | None],
    when: Moments,
    cuts: Cuts,
) -> Bools:
    """Whether each session is in the test part; `values` are those of the split column."""
    if split.by == "column":
        return np.array([value in split.test_values for value in values], bool)
    if split.by == "ratio":
        return unit_hash(session_ids, seed, "test") < split.test_fraction
    assert cuts.test is not None  # `find_cuts` sets it for a split by time
    return when.since(cuts.test)


def assign(
    split: Split,
    seed: int,
    session_ids: Sequence[str],
    values: Sequence[str | None],
    when: Moments,
    cuts: Cuts,
) -> npt.NDArray[np.int8]:
    """TRAIN, VALID or TEST for each session.

    Parameters
    ----------
    values
        Of the split column; read only if `split.by` is "column".
    cuts
        From `find_cuts`.
    """
    test_S = is_test(split, seed, session_ids, values, when, cuts)
    if cuts.valid is None:
        valid_S = unit_hash(session_ids, seed, "valid") < split.valid_fraction
    else:
        valid_S = when.since(cuts.valid)
    return np.where(test_S, TEST, np.where(valid_S, VALID, TRAIN)).astype(np.int8)


def find_cuts(split: Split, seed: int, session_ids: Sequence[str], values: Sequence[str | None], when: Moments) -> Cuts:
    """The cuts of a split by time, from all sessions or a sample of them."""
    test = last_moment(when, split.test_fraction) if split.by == "time" else None
    if split.valid_by == "random":
        return Cuts(test, None)
    train = when.of(~is_test(split, seed, session_ids, values, when, Cuts(test, None)))
    return Cuts(test, last_moment(train, split.valid_fraction) if len(train.time) else None)


def last_moment(when: Moments, fraction: float) -> tuple[int, int]:
    """The moment from which on `fraction` of the sessions lies, at least one."""
    n_last = max(1, round(fraction * len(when.time)))
    return when.at(int(when.sorted()[-n_last]))
