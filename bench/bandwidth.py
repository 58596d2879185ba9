"""Section ``bandwidth``: input bytes per second of each kernel over those of ``numpy.dot``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import numpy as np

from bench import cases
from bench.report import Figure
from bench.timing import Settings, Timed, at_level, interleaved

try:
    from threadpoolctl import ThreadpoolController
except ImportError:  # then bench/__init__.py has held BLAS to one thread
    _blas = None
else:
    _blas = ThreadpoolController()

_python_threads = ThreadPoolExecutor()


def dot_readers(a: np.ndarray, b: np.ndarray, threads: int) -> list[Timed]:
    """``numpy.dot`` over two float64 vectors, in every way in which it can have that many threads.

    With one thread that is BLAS held to one thread. With more it is BLAS with its own threads, and also one Python
    thread per slice that calls a one-threaded ``numpy.dot`` (which releases the GIL); the quicker one counts.
    """
    if threads == 1:
        return [Timed(lambda: np.dot(a, b), lambda: _blas_threads(1))]
    edges = [len(a) * i // threads for i in range(threads + 1)]
    slices = [slice(*ends) for ends in pairwise(edges)]

    def in_python_threads() -> None:
        for future in [_python_threads.submit(np.dot, a[part], b[part]) for part in slices]:
            future.result()

    readers = [Timed(in_python_threads, lambda: _blas_threads(1))]
    if _blas is not None:
        readers.append(Timed(lambda: np.dot(a, b), lambda: _then_idle(_blas_threads(threads))))
    return readers


def _blas_threads(count: int) -> AbstractContextManager:
    return nullcontext() if _blas is None else _blas.limit(limits=count, user_api="blas")


@contextmanager
def _then_idle(within: AbstractContextManager) -> Iterator[None]:
    """Wait afterwards until OpenBLAS's idle workers have stopped spinning, for they take a core for some 110 ms."""
    with within:
        yield
    time.sleep(0.2)


def measure(settings: Settings) -> Iterator[Figure]:
    kernels = cases.CONTRACT_KERNELS + cases.OTHER_KERNELS
    for dtype, rows in dict.fromkeys((kernel.dtype, kernel.rows) for kernel in kernels):
        pairs = cases.make_pairs(settings.size_mib, dtype, rows=rows)
        for kernel in kernels:
            if (kernel.dtype, kernel.rows) != (dtype, rows):
                continue
            contract = kernel in cases.CONTRACT_KERNELS
            for level in settings.levels if contract else settings.vector_levels:
                for threads in settings.threads:
                    yield fraction(
                        kernel.bind(pairs, threads),
                        pairs.as_float64(),
                        _elements(kernel, pairs),
                        level,
                        threads,
                        settings,
                        settings.rounds if contract else 3,
                        section="bandwidth",
                        case=kernel.name,
                    )


def fraction(
    kernel: Callable[[], object],
    vectors: tuple[np.ndarray, np.ndarray],
    elements: int,
    level: str,
    threads: int,
    settings: Settings,
    rounds: int,
    **labels: str,
) -> Figure:
    """Input bytes per second of a kernel over those of ``numpy.dot``, which reads the same bytes as two vectors."""
    readers = dot_readers(*vectors, threads)
    with at_level(level):
        times = interleaved([*readers, kernel], rounds, settings.settle(threads))
    dot_times, kernel_times = times[:-1].min(axis=0), times[-1]
    nbytes = sum(vector.nbytes for vector in vectors)
    return Figure(
        **labels,
        level=level,
        threads=threads,
        value=dot_times.min() / kernel_times.min(),
        median=float(np.median(dot_times / kernel_times)),
        unit="of numpy.dot's read bandwidth",
        counts=settings.counts,
        detail={
            "GB/s": nbytes / kernel_times.min() / 1e9,
            "numpy.dot GB/s": nbytes / dot_times.min() / 1e9,
            "ns per element": kernel_times.min() / elements * 1e9,
            "dot spread": dot_times.max() / dot_times.min(),
        },
    )


def _elements(kernel: cases.Kernel, pairs: cases.Pairs) -> int:
    return pairs.both.size if kernel.function == "entropy" else pairs.elements
