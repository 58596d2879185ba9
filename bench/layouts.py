"""Section ``layouts``: time of the same pairs laid out otherwise, over the contiguous case."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bench import cases
from bench.report import Figure
from bench.timing import Settings, at_level, interleaved


def _middle_axis(pairs: cases.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Shape (N/64, K, 64), reduced over axis 1."""
    count = len(pairs.p) // 64 * 64
    return tuple(
        np.ascontiguousarray(x[:count].reshape(-1, 64, x.shape[1]).swapaxes(1, 2)) for x in (pairs.p, pairs.q)
    )


def _all_pairs(pairs: cases.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """As many results as pairs, of every one of √N rows against every one of √N others."""
    side = int(len(pairs.p) ** 0.5)
    return pairs.p[:side, None, :], pairs.q[None, :side, :]


# Title -> (operands from the pairs, the reduced axis). The operands hold as many results as the pairs do.
LAYOUTS: dict[str, tuple[Callable[[cases.Pairs], tuple[np.ndarray, np.ndarray]], int]] = {
    "axis=0": (lambda pairs: tuple(np.ascontiguousarray(x.T) for x in (pairs.p, pairs.q)), 0),
    "Fortran order": (lambda pairs: tuple(np.asfortranarray(x) for x in (pairs.p, pairs.q)), -1),
    "q is one row": (lambda pairs: (pairs.p, pairs.q[:1]), -1),
    "p is one row": (lambda pairs: (pairs.p[:1], pairs.q), -1),
    "middle axis": (_middle_axis, 1),
    "all pairs": (_all_pairs, -1),
    "reversed rows": (lambda pairs: (pairs.p[:, ::-1], pairs.q[:, ::-1]), -1),
}


def measure(settings: Settings) -> Iterator[Figure]:
    for dtype in ("float64", "float32"):
        kernels = [kernel for kernel in cases.CONTRACT_KERNELS if kernel.dtype == dtype]
        pairs = cases.make_pairs(settings.size_mib, dtype)
        for title, (lay_out, axis) in LAYOUTS.items():
            operands = lay_out(pairs)
            for kernel in kernels:
                for level in settings.vector_levels:
                    for threads in settings.threads:
                        yield _layout(kernel, pairs, title, operands, axis, level, threads, settings)


def _layout(
    kernel: cases.Kernel,
    pairs: cases.Pairs,
    title: str,
    operands: tuple[np.ndarray, np.ndarray],
    axis: int,
    level: str,
    threads: int,
    settings: Settings,
) -> Figure:
    with at_level(level):
        times = interleaved(
            [kernel.bind(pairs, threads), kernel.bind_operands(operands, threads, axis)],
            3,
            settings.settle(threads),
        )
    elements = np.prod(np.broadcast_shapes(*(operand.shape for operand in operands)))
    per_element = times / np.array([[pairs.elements], [elements]])
    best = per_element.min(axis=1)
    return Figure(
        section="layouts",
        case=kernel.name,
        variant=title,
        level=level,
        threads=threads,
        value=best[1] / best[0],
        median=float(np.median(per_element[1] / per_element[0])),
        unit="× the contiguous time",
        counts=settings.counts,
        detail={"ns per element": best[1] * 1e9},
    )
