"""Section ``sweep``: time per element at other row lengths over that at K=128, in the same number of elements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import cases
from bench.report import Figure
from bench.timing import Settings, at_level, interleaved

ROW_LENGTHS = (2, 3, 5, 10, 16, 50, 100, 1000)


def measure(settings: Settings) -> Iterator[Figure]:
    for dtype in ("float64", "float32"):
        kernels = [kernel for kernel in cases.CONTRACT_KERNELS if kernel.dtype == dtype]
        usual = cases.make_pairs(settings.size_mib, dtype)
        for row_length in ROW_LENGTHS:
            pairs = cases.make_pairs(settings.size_mib, dtype, row_length)
            for kernel in kernels:
                for level in settings.vector_levels:
                    for threads in settings.threads:
                        yield _cliff(kernel, pairs, usual, row_length, level, threads, settings)


def _cliff(
    kernel: cases.Kernel,
    pairs: cases.Pairs,
    usual: cases.Pairs,
    row_length: int,
    level: str,
    threads: int,
    settings: Settings,
) -> Figure:
    with at_level(level):
        times = interleaved([kernel.bind(usual, threads), kernel.bind(pairs, threads)], 3, settings.settle(threads))
    per_element = times / np.array([[usual.elements], [pairs.elements]])
    best = per_element.min(axis=1)
    return Figure(
        section="sweep",
        case=kernel.name,
        variant=f"K={row_length}",
        level=level,
        threads=threads,
        value=best[1] / best[0],
        median=float(np.median(per_element[1] / per_element[0])),
        unit="× the time per element at K=128",
        counts=settings.counts,
        detail={"ns per element": best[1] * 1e9, "ns per element at K=128": best[0] * 1e9},
    )
