"""Section ``gaussian``: input bytes per second of ``gaussian_kl`` over those of ``numpy.dot``, and others beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

import fastkl
from bench.bandwidth import fraction
from bench.peers import compare
from bench.report import Figure
from bench.timing import Settings

try:
    import torch
except ImportError:
    torch = None


@dataclass(frozen=True)
class Kernel:
    """Rows of Gaussians: what their scales are, next to other rows or to N(0, I)."""

    scale: str
    prior: str  # "rows", "one row" or "N(0, I)"
    dtype: str
    length: int = 128

    @property
    def name(self) -> str:
        return f"{self.scale}, {self.prior}, {self.dtype}"


KERNELS = (
    Kernel("var", "rows", "float64"),
    Kernel("logvar", "N(0, I)", "float32"),
    Kernel("var", "rows", "float32"),
    Kernel("std", "rows", "float64"),
    Kernel("logvar", "rows", "float64"),
    Kernel("logvar", "N(0, I)", "float64"),
    Kernel("var", "one row", "float64"),
    Kernel("var", "rows", "float64", 32),
    Kernel("logvar", "N(0, I)", "float32", 32),
    Kernel("var", "rows", "float64", 256),
    Kernel("logvar", "N(0, I)", "float32", 256),
)


def _operands(kernel: Kernel, mib: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Means and scales in one allocation of ``mib`` MiB, and that."""
    n = 4 if kernel.prior == "rows" else 2
    row_bytes = kernel.length * np.dtype(kernel.dtype).itemsize
    # A page more, as in cases.make_pairs().
    count = max(int(mib * 2**20) // (n * row_bytes), 4) + -(-4096 // row_bytes)
    everything = np.empty((n, count, kernel.length), kernel.dtype)
    rng = np.random.default_rng(1)
    for i, operand in enumerate(everything):
        block = rng.standard_normal((2**20 // kernel.length + i, kernel.length))
        if i % 2:
            block = 0.5 * block if kernel.scale == "logvar" else np.exp(0.5 * block)
        for start in range(0, count, len(block)):
            operand[start : start + len(block)] = block[: count - start]
    operands = list(everything)
    if kernel.prior == "one row":
        operands += [everything[0, :1].copy(), everything[1, :1].copy()]
    return operands, everything


def measure(settings: Settings) -> Iterator[Figure]:
    for kernel in KERNELS:
        operands, everything = _operands(kernel, settings.size_mib)
        out = np.full(everything.shape[1], np.nan, kernel.dtype)
        vectors = tuple(everything.reshape(2, -1).view(np.float64))
        for level in settings.vector_levels:
            for threads in settings.threads:
                yield fraction(
                    partial(fastkl.gaussian_kl, *operands, scale=kernel.scale, out=out, n_threads=threads),
                    vectors,
                    everything[0].size,
                    level,
                    threads,
                    settings,
                    settings.rounds,
                    section="gaussian",
                    case=kernel.name,
                    variant=f"K={kernel.length}",
                )


def _numpy(m, s, mq, sq) -> Callable[[], object]:
    return lambda: 0.5 * np.sum((m - mq) ** 2 / sq + s / sq - 1 - np.log(s / sq), axis=-1)


def _numpy_standard(m, logvar) -> Callable[[], object]:
    return lambda: -0.5 * np.sum(1 + logvar - m**2 - np.exp(logvar), axis=-1)


def _torch(m, s, mq, sq) -> Callable[[], object]:
    normal = torch.distributions.Normal
    p, q = (
        normal(torch.from_numpy(a), torch.from_numpy(np.sqrt(b)), validate_args=False) for a, b in ((m, s), (mq, sq))
    )
    return lambda: torch.distributions.kl_divergence(p, q).sum(-1)


def _torch_standard(m, logvar) -> Callable[[], object]:
    a, b = torch.from_numpy(m), torch.from_numpy(logvar)
    return lambda: -0.5 * torch.sum(1 + b - a.pow(2) - b.exp(), dim=-1)


def measure_peers(settings: Settings) -> Iterator[Figure]:
    """How many times as long the usual lines take; over a quarter of the size, for they make many temporaries."""
    for kernel in KERNELS[:2]:
        operands, everything = _operands(kernel, settings.size_mib / 4)
        standard = len(operands) == 2
        peers = {"NumPy": (_numpy_standard if standard else _numpy)(*operands)}
        if torch is not None:
            peers["PyTorch"] = (_torch_standard if standard else _torch)(*operands)
        out = np.full(everything.shape[1], np.nan, kernel.dtype)
        ours = partial(fastkl.gaussian_kl, *operands, scale=kernel.scale, out=out)
        yield from compare(ours, peers, everything[0].size, settings, "gaussian peers", kernel.name)
