"""Section ``threads``: speed-up of several threads over one, in and out of cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import cases
from bench.bandwidth import dot_readers
from bench.report import Figure
from bench.timing import Settings, at_level, interleaved, repeated

IN_CACHE_ELEMENTS = (2**16, 2**18, 2**20)
"""Elements of one operand; the largest pair of float64 operands is 16 MiB."""


def measure(settings: Settings) -> Iterator[Figure]:
    if max(settings.threads) < 2:
        yield Figure("threads", "all", None, "", detail={"note": "one thread is all there is"})
        return
    for kernel in cases.CONTRACT_KERNELS[:4]:
        itemsize = np.dtype(kernel.dtype).itemsize
        for elements in IN_CACHE_ELEMENTS:
            pairs = cases.make_pairs(elements * 2 * itemsize / 2**20, kernel.dtype)
            yield from _speed_ups(kernel, pairs, f"in cache, {elements // 1024}k elements", settings, in_cache=True)
    for dtype in ("float64", "float32"):
        pairs = cases.make_pairs(settings.size_mib, dtype)
        for kernel in cases.CONTRACT_KERNELS[:4]:
            if kernel.dtype == dtype:
                yield from _speed_ups(kernel, pairs, "out of cache", settings, in_cache=False)


def _speed_ups(
    kernel: cases.Kernel, pairs: cases.Pairs, where: str, settings: Settings, *, in_cache: bool
) -> Iterator[Figure]:
    for level in settings.vector_levels:
        with at_level(level):
            calls, repeats = [], []
            for count in (1, 2):
                call = kernel.bind(pairs, count)
                loop, repeat = repeated(call) if in_cache else (call, 1)
                calls.append(loop)
                repeats.append(repeat)
            dots = [] if in_cache else [dot_readers(*pairs.as_float64(), count) for count in (1, 2)]
            times = interleaved(
                [*calls, *(reader for readers in dots for reader in readers)],
                settings.rounds,
                0.0 if in_cache else settings.settle(2),
            )
        ours = times[:2] / np.array(repeats)[:, None]
        detail = {"µs, one thread": ours[0].min() * 1e6, "µs, two threads": ours[1].min() * 1e6}
        if dots:
            detail["numpy.dot's own speed-up"] = times[2].min() / times[3:].min()
        yield Figure(
            section="threads",
            case=kernel.name,
            variant=where,
            level=level,
            threads=2,
            value=ours[0].min() / ours[1].min(),
            median=float(np.median(ours[0] / ours[1])),
            unit="× as fast as one thread",
            # Cached arrays are as large as they should be in a quick run too.
            counts=in_cache or settings.counts,
            detail=detail,
        )
