"""Section ``memory``: how much is allocated beyond inputs and output, over what the contract allows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastkl
from bench import cases
from bench.report import Figure
from bench.timing import Settings

_MAX_MIB = 256
"""Inputs of this size tell 16 MiB from anything proportional to them."""


def measure(settings: Settings) -> Iterator[Figure]:
    for title, call, threads in _calls(min(settings.size_mib, _MAX_MIB), max(settings.threads)):
        peak = _peak_bytes(call)
        allowed = 16 + threads
        yield Figure(
            section="memory",
            case=title,
            level=fastkl.simd_level(),
            threads=threads,
            value=peak / 2**20 / allowed,
            unit="of 16 MiB + 1 MiB a thread",
            counts=settings.size_mib >= _MAX_MIB,
            detail={"peak MiB": peak / 2**20, "allowed MiB": allowed},
        )


def _calls(mib: float, threads: int) -> Iterator[tuple[str, object, int]]:
    for kernel in cases.CONTRACT_KERNELS + cases.OTHER_KERNELS[-1:]:
        pairs = cases.make_pairs(mib, kernel.dtype, rows=kernel.rows)
        yield kernel.name, kernel.bind(pairs, threads), threads
    kl = cases.CONTRACT_KERNELS[0]
    pairs = cases.make_pairs(mib, "float64")
    p, q = pairs.p, pairs.q
    yield "KL float64, axis=0", kl.bind_operands(tuple(np.ascontiguousarray(x.T) for x in (p, q)), threads, 0), threads
    yield "KL float64, q is one row", kl.bind_operands((p, q[:1]), threads), threads
    yield "KL float64, byte-swapped", kl.bind_operands((p.astype(">f8"), q.astype(">f8")), threads), threads
    yield "KL float64, unaligned", kl.bind_operands((_unaligned(p), _unaligned(q)), threads), threads
    yield "KL float64 against float32", kl.bind_operands((p, q.astype(np.float32)), threads), threads
    long_rows = cases.make_pairs(mib, "float64", 2**20)
    yield "KL float64, K=1048576", kl.bind(long_rows, threads), threads


def _unaligned(values: np.ndarray) -> np.ndarray:
    shifted = np.empty(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    shifted[...] = values
    return shifted


def _peak_bytes(call) -> int:
    """The larger of what Python's allocators and the operating system saw at the worst moment of a call."""
    call()  # thread stacks and pools are made once
    tracemalloc.start()
    try:
        call()
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max(traced, _resident_rise(call))


def _resident_rise(call) -> int:
    """Rise of the resident set's high-water mark; 0 where the system has no Linux ``/proc`` to ask."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
    except OSError:
        return 0
    before = _status_kib("VmRSS")
    call()
    return max(_status_kib("VmHWM") - before, 0) * 1024


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(name)
