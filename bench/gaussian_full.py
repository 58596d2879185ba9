"""Section ``gaussian full``: the time of others over that of ``gaussian_kl_full``, for batches of full covariances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import fastkl
from bench.cases import COUNTING_MIB
from bench.report import Figure
from bench.timing import Settings, interleaved

try:
    import torch
except ImportError:
    torch = None

# Components, and how many pairs there are of them. (These inputs are a few hundred MiB: the work is arithmetic.)
BATCHES = {3: 1_000_000, 8: 300_000, 16: 100_000, 32: 20_000, 64: 4_000, 256: 60, 512: 12}


def _covariances(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Positive definite matrices, a few thousand different ones again and again."""
    some = rng.standard_normal((min(n, 4096 // d), d, 2 * d))
    some = some @ some.transpose(0, 2, 1) / (2 * d)
    return np.resize(np.tril(some) + np.tril(some, -1).transpose(0, 2, 1), (n, d, d))


def _numpy(m: np.ndarray, s: np.ndarray, mq: np.ndarray, sq: np.ndarray) -> np.ndarray:
    apart = (m - mq)[..., np.newaxis]
    trace = np.trace(np.linalg.solve(sq, s), axis1=-2, axis2=-1)
    distance = np.sum(apart * np.linalg.solve(sq, apart), axis=(-2, -1))
    return 0.5 * (trace + distance - m.shape[-1] + np.linalg.slogdet(sq)[1] - np.linalg.slogdet(s)[1])


def _torch(m: np.ndarray, s: np.ndarray, mq: np.ndarray, sq: np.ndarray) -> Callable[[], object]:
    tensors = [torch.from_numpy(x) for x in (m, s, mq, sq)]

    def call() -> object:
        p, q = (
            torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
            for mean, covariance in (tensors[:2], tensors[2:])
        )
        return torch.distributions.kl_divergence(p, q)

    return call


def measure(settings: Settings) -> Iterator[Figure]:
    rng = np.random.default_rng(1)
    for d, count in BATCHES.items():
        n = max(4, int(count * min(1.0, settings.size_mib / COUNTING_MIB)))
        m, mq = rng.standard_normal((2, n, d))
        operands = m, _covariances(rng, n, d), mq, _covariances(rng, n, d)[::-1].copy()
        out = np.full(n, np.nan)
        peers = {"NumPy": partial(_numpy, *operands)}
        if torch is not None:
            peers["PyTorch"] = _torch(*operands)
        ours = partial(fastkl.gaussian_kl_full, *operands, diagonal="neither", out=out)
        times = interleaved([ours, *peers.values()], 3, settings.settle(2))
        for (peer, _), theirs in zip(peers.items(), times[1:], strict=True):
            yield Figure(
                section="gaussian full",
                case=f"{peer}, d={d}",
                variant=f"d={d}, {count:,} pairs",
                threads=fastkl.get_num_threads(),
                value=theirs.min() / times[0].min(),
                median=float(np.median(theirs / times[0])),
                unit="× fastkl's time",
                counts=settings.counts,
                detail={
                    "peer": peer,
                    "fastkl's µs per pair": times[0].min() / n * 1e6,
                    "µs per pair": theirs.min() / n * 1e6,
                },
            )
