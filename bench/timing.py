"""Taking times on a machine that is never quite quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np

import fastkl
from bench.cases import COUNTING_MIB

LEVELS = ("avx512", "avx2", "neon", "baseline")


@dataclass(frozen=True)
class Settings:
    """What one run of the benchmark was asked for."""

    size_mib: float
    rounds: int
    levels: tuple[str, ...]
    threads: tuple[int, ...]

    @property
    def counts(self) -> bool:
        return self.size_mib >= COUNTING_MIB

    @property
    def vector_levels(self) -> tuple[str, ...]:
        """The levels with targets; ``baseline`` only where there is no other."""
        return tuple(level for level in self.levels if level != "baseline") or self.levels

    def settle(self, threads: int) -> float:
        """Seconds to wait before each call: longer than idle workers of libgomp spin (10 ms)."""
        return 0.03 if threads > 1 and self.counts else 0.0


def usable_levels() -> tuple[str, ...]:
    """The levels that this build has and this CPU can run, best first."""

    def usable(name: str) -> bool:
        try:
            with at_level(name):
                return True
        except ValueError:
            return False

    return tuple(name for name in LEVELS if usable(name))


@contextmanager
def at_level(name: str) -> Iterator[None]:
    """Run at a level, and restore the one before."""
    before = fastkl.simd_level()
    fastkl.set_simd_level(name)
    try:
        yield
    finally:
        fastkl.set_simd_level(before)


@dataclass(frozen=True)
class Timed:
    """Something to time; ``within`` is entered before the clock starts and left after it stops."""

    call: Callable[[], object]
    within: Callable[[], AbstractContextManager] = nullcontext


def interleaved(
    timed: Sequence[Timed | Callable[[], object]], rounds: int, settle: float = 0.0, seconds: float = 20.0
) -> np.ndarray:
    """Seconds of every call in every round, shape (calls, rounds): a round runs each call once, in turn.

    Interleaving lets slow and quick phases of a shared machine hit all calls alike. A first round is run and not
    counted; after ``seconds`` no new round is begun once two are done.
    """
    timed = [item if isinstance(item, Timed) else Timed(item) for item in timed]
    times = []
    begun = time.perf_counter()
    for number in range(rounds + 1):
        row = []
        for item in timed:
            with item.within():
                time.sleep(settle)
                start = time.perf_counter()
                item.call()
                row.append(time.perf_counter() - start)
        if number > 0:
            times.append(row)
        if len(times) >= 2 and time.perf_counter() - begun > seconds:
            break
    return np.array(times).T


def repeated(call: Callable[[], object], seconds: float = 0.01) -> tuple[Callable[[], None], int]:
    """A call that runs ``call`` as often as fills about ``seconds``, and how often that is."""
    count, taken = 1, 0.0
    while taken < seconds / 4:
        start = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - start
        if taken < seconds / 4:
            count *= 2
    count = max(1, round(count * seconds / taken))

    def loop() -> None:
        for _ in range(count):
            call()

    return loop, count
