"""Section ``overhead``: what a call costs beyond its arithmetic, and what an import costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastkl
from bench import cases
from bench.report import Figure
from bench.timing import Settings, interleaved, repeated

_PAIR_LENGTH = 64
_FUNCTIONS = ("kl_divergence", "js_divergence", "js_distance", "total_variation", "entropy")


def measure(settings: Settings) -> Iterator[Figure]:
    yield from _calls(settings)
    yield _import(settings)


def _calls(settings: Settings) -> Iterator[Figure]:
    pairs = cases.make_pairs(0, "float64", _PAIR_LENGTH)
    p, q = pairs.p[0], pairs.q[0]
    for name in _FUNCTIONS:
        function = getattr(fastkl, name)
        operands = (p,) if name == "entropy" else (p, q)
        loop, count = repeated(lambda function=function, operands=operands: function(*operands))
        times = interleaved([loop], 5 * settings.rounds)[0] / count * 1e6
        yield Figure(
            section="overhead",
            case=f"{name}, one pair",
            level=fastkl.simd_level(),
            threads=1,
            value=times.min(),
            median=float(np.median(times)),
            unit=f"µs (float64, K={_PAIR_LENGTH})",
        )


def _import(settings: Settings) -> Figure:
    """Best of alternating fresh processes, each timing the import alone, with warm file caches."""
    taken = {"numpy": [], "fastkl": []}
    for _ in range(2 * settings.rounds + 1):
        for module, seconds in taken.items():
            seconds.append(_import_seconds(module))
    best = {module: min(seconds[1:]) for module, seconds in taken.items()}
    return Figure(
        section="overhead",
        case="import",
        level=None,
        threads=1,
        value=best["fastkl"] / best["numpy"],
        median=float(np.median(np.array(taken["fastkl"][1:]) / np.array(taken["numpy"][1:]))),
        unit="× numpy's own import",
        detail={"fastkl ms": best["fastkl"] * 1e3, "numpy ms": best["numpy"] * 1e3},
    )


def _import_seconds(module: str) -> float:
    code = (
        f"import time; start = time.perf_counter(); import {module}; "
        "print(time.perf_counter() - start)"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(fastkl.__file__).parents[1]))
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout)
