"""Section ``logits``: input bytes per second of divergences from logits over those of ``numpy.dot``; others beside it.

Rows are as of language models: p's logits normally distributed with a standard deviation of 2, q's with noise of 0.5
added, which gives divergences of about 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

import fastkl
from bench import exact
from bench.bandwidth import fraction
from bench.peers import compare
from bench.report import Figure
from bench.timing import Settings

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
except ImportError:
    jax = None


@dataclass(frozen=True)
class Kernel:
    """A function of rows of logits."""

    title: str
    function: str
    dtype: str
    length: int = 32_768

    @property
    def name(self) -> str:
        return f"{self.title} {self.dtype}, K={self.length}"


KERNELS = (
    Kernel("KL", "kl_divergence_from_logits", "float32"),
    Kernel("KL", "kl_divergence_from_logits", "float32", 151_936),
    Kernel("KL", "kl_divergence_from_logits", "float16"),
    Kernel("KL", "kl_divergence_from_logits", "bfloat16"),
    Kernel("KL", "kl_divergence_from_logits", "float64"),
    Kernel("KL", "kl_divergence_from_logits", "float32", 1000),
    Kernel("KL", "kl_divergence_from_logits", "float32", 128),
    Kernel("JS", "js_divergence_from_logits", "float32"),
    Kernel("cross-entropy", "cross_entropy_from_logits", "float32"),
)


def _rows(kernel: Kernel, mib: float) -> np.ndarray:
    """p's and q's logits in one array of ``mib`` MiB; bfloat16 as its bit patterns."""
    size = 2 if "16" in kernel.dtype else np.dtype(kernel.dtype).itemsize
    n = max(4, int(mib * 2**20) // (2 * kernel.length * size))
    rng = np.random.default_rng(1)
    few = rng.standard_normal((max(1, 2**22 // kernel.length), kernel.length), dtype=np.float32)
    noise = rng.standard_normal((len(few) + 1, kernel.length), dtype=np.float32)
    rows = np.empty((2, n, kernel.length), np.uint16 if kernel.dtype == "bfloat16" else kernel.dtype)
    for i, block in enumerate((2 * few, 2 * few + 0.5 * noise[: len(few)])):
        if kernel.dtype == "bfloat16":
            block = (block.view(np.uint32) >> 16).astype(np.uint16)
        for start in range(0, n, len(few)):
            rows[i, start : start + len(few)] = block[: n - start]
    return rows


def measure(settings: Settings) -> Iterator[Figure]:
    for kernel in KERNELS:
        rows = _rows(kernel, settings.size_mib)
        p, q = rows
        options = {"dtype": "bfloat16"} if kernel.dtype == "bfloat16" else {}
        out = np.full(len(p), np.nan, np.float64 if kernel.dtype == "float64" else np.float32)
        vectors = tuple(rows.reshape(2, -1).view(np.float64))
        for level in settings.vector_levels:
            for threads in settings.threads:
                yield fraction(
                    partial(getattr(fastkl, kernel.function), p, q, out=out, n_threads=threads, **options),
                    vectors,
                    p.size,
                    level,
                    threads,
                    settings,
                    settings.rounds,
                    section="logits",
                    case=kernel.name,
                )


def _numpy(p: np.ndarray, q: np.ndarray) -> Callable[[], object]:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    def call() -> object:
        log_p = log_softmax(p)
        return (np.exp(log_p) * (log_p - log_softmax(q))).sum(axis=-1)

    return call


def _scipy(p: np.ndarray, q: np.ndarray) -> Callable[[], object]:
    from scipy.special import rel_entr, softmax

    return lambda: rel_entr(softmax(p, axis=-1), softmax(q, axis=-1)).sum(axis=-1)


def _torch(p: np.ndarray, q: np.ndarray) -> Callable[[], object]:
    from torch.nn.functional import kl_div, log_softmax

    a, b = torch.from_numpy(p), torch.from_numpy(q)
    return lambda: kl_div(log_softmax(b, -1), log_softmax(a, -1), reduction="none", log_target=True).sum(-1).numpy()


def _jax(p: np.ndarray, q: np.ndarray) -> Callable[[], object]:
    def divergence(a: object, b: object) -> object:
        log_p = jax.nn.log_softmax(a)
        return (jax.numpy.exp(log_p) * (log_p - jax.nn.log_softmax(b))).sum(-1)

    compiled = jax.jit(divergence)
    a, b = jax.numpy.asarray(p), jax.numpy.asarray(q)
    return lambda: compiled(a, b).block_until_ready()


def _fastkl(p: np.ndarray, q: np.ndarray) -> Callable[[], object]:
    return partial(fastkl.kl_divergence_from_logits, p, q)


def _peers(p: np.ndarray, q: np.ndarray) -> dict[str, Callable[[], object]]:
    makers = {"NumPy": _numpy, "SciPy softmax, rel_entr": _scipy}
    if torch is not None:
        makers["PyTorch log_softmax, kl_div"] = _torch
    if jax is not None:
        makers["JAX, compiled"] = _jax
    return {name: make(p, q) for name, make in makers.items()}


def measure_peers(settings: Settings) -> Iterator[Figure]:
    """How many times as long others take; over a quarter of the size, for they make temporaries."""
    for kernel in (KERNELS[0], KERNELS[5]):
        p, q = _rows(kernel, settings.size_mib / 4)
        peers = _peers(p, q)
        ours = partial(fastkl.kl_divergence_from_logits, p, q, out=np.full(len(p), np.nan, np.float32))
        yield from compare(ours, peers, p.size, settings, "logits peers", kernel.name)


def measure_errors(settings: Settings) -> Iterator[Figure]:
    """The worst error for rows of 1000 float32 logits whose divergences become smaller and smaller."""
    rng = np.random.default_rng(2)
    p = (2 * rng.standard_normal((20, 1000))).astype(np.float32)
    for noise in (0.5, 1e-2, 1e-4, 1e-6):
        q = (p + noise * rng.standard_normal(p.shape)).astype(np.float32)
        truth = np.array([exact.kl_from_logits(*pair) for pair in zip(p, q, strict=True)])
        for peer, call in {"fastkl": _fastkl(p, q), **_peers(p, q)}.items():
            wrong = np.abs(np.asarray(call(), np.float64) - truth)
            yield Figure(
                section="logits errors",
                case=peer,
                variant=f"noise of {noise:g}",
                value=float(np.max(wrong / np.spacing(truth.astype(np.float32)))),
                unit="ulp of float32",
                detail={"median divergence": float(np.median(truth))},
            )
