"""Sections ``peers`` and ``errors``: what others take for the same rows, and how far from the truth they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import fastkl
from bench import cases
from bench.report import Figure
from bench.timing import Settings, interleaved
from fastkl import reference

Call = Callable[[], object]
"""Computes one value for every pair of rows; inputs in the peer's own containers are made beforehand."""


def compare(
    ours: Callable[[], object],
    others: dict[str, Callable[[], object]],
    elements: int,
    settings: Settings,
    section: str,
    variant: str,
) -> Iterator[Figure]:
    """How many times as long others take as we do, in interleaved rounds."""
    times = interleaved([ours, *others.values()], 3, settings.settle(2))
    for peer, theirs in zip(others, times[1:], strict=True):
        yield Figure(
            section=section,
            case=peer,
            variant=variant,
            value=theirs.min() / times[0].min(),
            median=float(np.median(theirs / times[0])),
            unit="× fastkl's time",
            detail={"ns per element": theirs.min() / elements * 1e9},
        )


def _reference_kl(p, q, threads) -> Call:
    return lambda: reference.kl_divergence(p, q)


def _numpy_kl(p, q, threads) -> Call:
    def two_lines():
        log_ratio = np.log(p / q)
        return (p * log_ratio).sum(axis=-1)

    return two_lines


def _numpy_normalised_kl(p, q, threads) -> Call:
    def with_sums():
        x, y = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
        return (x * np.log(x / y)).sum(axis=-1)

    return with_sums


def _scipy_rel_entr(p, q, threads) -> Call:
    from scipy.special import rel_entr

    return lambda: rel_entr(p, q).sum(axis=-1)


def _scipy_entropy(p, q, threads) -> Call:
    from scipy.stats import entropy

    return lambda: entropy(p, q, axis=-1)


def _torch_kl_over_logs(p, q, threads) -> Call:
    import torch
    from torch.nn.functional import kl_div

    torch.set_num_threads(threads)
    x, y = torch.from_numpy(p), torch.from_numpy(q)
    return lambda: kl_div(y.log(), x, reduction="none").sum(-1)


def _torch_kl_over_log_softmax(p, q, threads) -> Call:
    import torch
    from torch.nn.functional import kl_div, log_softmax

    torch.set_num_threads(threads)
    x, y = torch.from_numpy(p).log(), torch.from_numpy(q).log()
    return lambda: kl_div(log_softmax(y, -1), log_softmax(x, -1), reduction="none", log_target=True).sum(-1)


def _numba_kl(p, q, threads) -> Call:
    import numba

    @numba.njit(parallel=True, error_model="numpy")
    def loop(p, q):
        result = np.empty(len(p), p.dtype)
        for i in numba.prange(len(p)):
            p_sum = q_sum = total = 0.0
            for j in range(p.shape[1]):
                p_sum += p[i, j]
                q_sum += q[i, j]
            for j in range(p.shape[1]):
                if p[i, j] > 0:
                    total += p[i, j] / p_sum * math.log(p[i, j] * q_sum / (q[i, j] * p_sum))
            result[i] = total
        return result

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    return lambda: loop(p, q)


def _numkong_kl(p, q, threads) -> Call:
    import numkong

    return lambda: np.asarray(numkong.kullbackleibler(p, q))


def _numkong_kl_in_python_threads(p, q, threads) -> Call:
    import numkong

    return _in_python_threads(numkong.kullbackleibler, p, q, threads)


def _reference_js(p, q, threads) -> Call:
    return lambda: reference.js_distance(p, q)


def _numpy_js(p, q, threads) -> Call:
    def formula():
        m = (p + q) / 2
        return np.sqrt((p * np.log(p / m) + q * np.log(q / m)).sum(axis=-1) / 2)

    return formula


def _scipy_js(p, q, threads) -> Call:
    from scipy.spatial.distance import jensenshannon

    return lambda: jensenshannon(p, q, axis=-1)


def _torch_js(p, q, threads) -> Call:
    import torch
    from torch.nn.functional import kl_div

    torch.set_num_threads(threads)
    x, y = torch.from_numpy(p), torch.from_numpy(q)

    def formula():
        log_m = ((x + y) / 2).log()
        return ((kl_div(log_m, x, reduction="none") + kl_div(log_m, y, reduction="none")).sum(-1) / 2).sqrt()

    return formula


def _numba_js(p, q, threads) -> Call:
    import numba

    @numba.njit(parallel=True, error_model="numpy")
    def loop(p, q):
        result = np.empty(len(p), p.dtype)
        for i in numba.prange(len(p)):
            p_sum = q_sum = total = 0.0
            for j in range(p.shape[1]):
                p_sum += p[i, j]
                q_sum += q[i, j]
            for j in range(p.shape[1]):
                x, y = p[i, j] / p_sum, q[i, j] / q_sum
                m = (x + y) / 2
                if x > 0:
                    total += x * math.log(x / m)
                if y > 0:
                    total += y * math.log(y / m)
            result[i] = math.sqrt(max(total, 0.0) / 2)
        return result

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    return lambda: loop(p, q)


def _numkong_js(p, q, threads) -> Call:
    import numkong

    return lambda: np.asarray(numkong.jensenshannon(p, q))


def _numkong_js_in_python_threads(p, q, threads) -> Call:
    import numkong

    return _in_python_threads(numkong.jensenshannon, p, q, threads)


def _in_python_threads(function, p, q, threads) -> Call:
    edges = [len(p) * i // threads for i in range(threads + 1)]
    slices = [slice(*ends) for ends in pairwise(edges)]
    pool = ThreadPoolExecutor(threads)
    return lambda: np.concatenate(list(pool.map(lambda part: np.asarray(function(p[part], q[part])), slices)))


@dataclass(frozen=True)
class Peer:
    """Another way to the same values: ``prepare(p, q, threads)`` gives the call, or raises ImportError.

    Where there are two ways to have threads, ``prepare`` has two entries, and the quicker one counts. ``share`` is the
    part of the rows that is given to a peer which would need too much memory for all; times are then per element.
    """

    name: str
    prepare: tuple[Callable[..., Call], ...]
    normalises: bool
    share: float = 1.0


PEERS: dict[str, tuple[Peer, ...]] = {
    "kl_divergence": (
        Peer("fastkl.reference", (_reference_kl,), True, share=1 / 8),
        Peer("NumPy, two lines", (_numpy_kl,), False),
        Peer("NumPy, normalising first", (_numpy_normalised_kl,), True),
        Peer("SciPy special.rel_entr", (_scipy_rel_entr,), False),
        Peer("SciPy stats.entropy", (_scipy_entropy,), True),
        Peer("PyTorch kl_div over log_softmax", (_torch_kl_over_log_softmax,), True),
        Peer("PyTorch kl_div over logs", (_torch_kl_over_logs,), False),
        Peer("Numba parallel loop", (_numba_kl,), True),
        Peer("NumKong", (_numkong_kl, _numkong_kl_in_python_threads), False),
    ),
    "js_distance": (
        Peer("fastkl.reference", (_reference_js,), True, share=1 / 8),
        Peer("NumPy, formula", (_numpy_js,), False),
        Peer("SciPy spatial.distance.jensenshannon", (_scipy_js,), True),
        Peer("PyTorch kl_div to the mixture", (_torch_js,), False),
        Peer("Numba parallel loop", (_numba_js,), True),
        Peer("NumKong", (_numkong_js, _numkong_js_in_python_threads), False),
    ),
}
"""Public function -> what it is compared with. JS is compared as a distance, which is what SciPy and NumKong return."""

_TITLES = {"kl_divergence": "KL", "js_distance": "JS distance"}
_DTYPES = ("float64", "float32")
ERROR_ROWS = ("ordinary", "with zeros", "nearly equal", "disjoint")
_ERROR_COUNT = 64


def measure(settings: Settings) -> Iterator[Figure]:
    """Times, on ordinary rows."""
    threads = max(settings.threads)
    for dtype in _DTYPES:
        pairs = cases.make_pairs(settings.size_mib, dtype)
        for function, peers in PEERS.items():
            ours = cases.Kernel(_TITLES[function], function, dtype).bind(pairs, threads)
            for peer in peers:
                yield _time_ratio(function, dtype, peer, ours, pairs, threads, settings)


def _time_ratio(
    function: str, dtype: str, peer: Peer, ours: Call, pairs: cases.Pairs, threads: int, settings: Settings
) -> Figure:
    figure = Figure(
        section="peers",
        case=f"{_TITLES[function]} {dtype}",
        variant=peer.name,
        level=fastkl.simd_level(),
        threads=threads,
        value=None,
        unit="× fastkl's time",
        counts=settings.counts,
    )
    try:
        count = max(1, int(len(pairs.p) * peer.share))
        theirs = [prepare(pairs.p[:count], pairs.q[:count], threads) for prepare in peer.prepare]
    except ImportError as error:
        figure.detail = {"note": str(error)}
        return figure
    with np.errstate(all="ignore"):
        times = interleaved([ours, *theirs], settings.rounds, settings.settle(threads), seconds=4.0)
    our_times = times[0] / pairs.elements
    their_times = times[1:].min(axis=0) / (count * pairs.p.shape[1])
    figure.value = their_times.min() / our_times.min()
    figure.median = float(np.median(their_times / our_times))
    figure.detail = {"ns per element": their_times.min() * 1e9, "fastkl ns per element": our_times.min() * 1e9}
    return figure


def measure_errors(settings: Settings) -> Iterator[Figure]:
    """Errors against the exact value of what a peer computes: of the normalised rows if it normalises."""
    from bench.exact import exact_value, ulp_error

    threads = max(settings.threads)
    for dtype in _DTYPES:
        for rows in ERROR_ROWS:
            shape = (_ERROR_COUNT, cases.ROW_LENGTH)
            p, q = cases.make_rows(rows, shape, dtype, np.random.default_rng(2))
            for function, peers in PEERS.items():
                exact = {
                    normalise: [exact_value(function, x, y, normalise) for x, y in zip(p, q, strict=True)]
                    for normalise in {True, *(peer.normalises for peer in peers)}
                }
                own = Peer("fastkl", (_own(function),), True)
                for peer in (own, *peers):
                    figure = Figure(
                        section="errors",
                        case=f"{_TITLES[function]} {dtype}, {peer.name}",
                        variant=rows,
                        value=None,
                        unit="ulp",
                    )
                    try:
                        with np.errstate(all="ignore"):
                            got = np.asarray(peer.prepare[0](p, q, threads)())
                    except ImportError as error:
                        figure.detail = {"note": str(error)}
                    else:
                        errors = [
                            (ulp_error(value, true, dtype), abs(float(value) - float(true)))
                            for value, true in zip(got, exact[peer.normalises], strict=True)
                        ]
                        figure.value = max(ulp for ulp, _ in errors)
                        figure.detail = {
                            "worst absolute error": max((e for _, e in errors if math.isfinite(e)), default=math.inf),
                            "rows wrong": sum(math.isinf(ulp) for ulp, _ in errors),
                        }
                    yield figure


def _own(function: str) -> Callable[..., Call]:
    return lambda p, q, threads: lambda: getattr(fastkl, function)(p, q, n_threads=threads)
