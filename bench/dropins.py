"""Section ``drop-ins``: an original's time over that of its drop-in, the same call in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bench.report import Figure
from bench.timing import Settings, interleaved, repeated

SIZES = {"one pair, K=64": (1, 64), "1,000 × 100": (1_000, 100), "1,000,000 × 128": (1_000_000, 128)}


@dataclass(frozen=True)
class DropIn:
    """A function, its drop-in, and what both are called with: ``bind(function, rows, length, rng)`` gives the call."""

    title: str
    original: Callable
    drop_in: Callable
    bind: Callable[[Callable, int, int, np.random.Generator], Callable[[], object]]
    sizes: dict[str, tuple[int, int]]


def rows_of(rows: int, length: int, rng: np.random.Generator, dtype: str = "float64") -> np.ndarray:
    """Probabilities, Dirichlet(1, ..., 1): one row without a batch axis where only one is asked for."""
    weights = rng.standard_exponential((rows, length), np.float32).astype(dtype)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights[0] if rows == 1 else weights


def _jax() -> Iterator[DropIn]:
    """The compiled formulas of jax.numpy, and their gradients; a call returns when its result is there."""
    import jax
    import jax.numpy as jnp

    import fastkl.jax

    def kl(p: jax.Array, q: jax.Array) -> jax.Array:
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        return jnp.where(p > 0, p * jnp.log(p / q), 0).sum(-1)

    def distillation(student: jax.Array, teacher: jax.Array) -> jax.Array:
        p, q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
        return (jnp.exp(p) * (p - q)).sum(-1).mean()

    def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        p, q = (jnp.asarray(rows_of(rows, length, rng, "float32")) for _ in range(2))
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(p, q))

    def slope(function: Callable) -> Callable:
        return jax.grad(lambda p, q: function(p, q).sum())

    def with_slope(function: Callable) -> Callable:
        return jax.value_and_grad(function)

    ours = fastkl.jax
    for title, formula, function in (
        ("jax: KL float32", kl, ours.kl_divergence),
        ("jax: KL float32, its gradient", slope(kl), slope(ours.kl_divergence)),
        ("jax: distillation float32", distillation, ours.distillation_loss),
        ("jax: distillation float32 and its gradient", with_slope(distillation), with_slope(ours.distillation_loss)),
    ):
        yield DropIn(title, formula, function, bind, SIZES)

    def either(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        if function is ours.kl_divergence:
            return bind(function, rows, length, rng)
        p, q = (rows_of(rows, length, rng, "float32") for _ in range(2))
        return lambda: function(p, q)

    yield DropIn("jax: KL float32, over NumPy's path", fastkl.kl_divergence, ours.kl_divergence, either, SIZES)


FAMILIES: tuple[Callable[[], Iterator[DropIn]], ...] = (_jax,)
"""The drop-ins of each namespace; what it stands in for is imported when it is called."""


def measure(settings: Settings) -> Iterator[Figure]:
    for family in FAMILIES:
        try:
            for drop_in in family():
                yield from _ratios(drop_in, settings)
        except ModuleNotFoundError as error:
            yield Figure("drop-ins", family.__name__.strip("_"), None, "", detail={"note": str(error)})


def _ratios(drop_in: DropIn, settings: Settings) -> Iterator[Figure]:
    for size, (rows, length) in drop_in.sizes.items():
        scale = min(1.0, settings.size_mib / 1024) if rows > 100_000 else 1.0
        number = max(1, round(rows * scale))
        calls = [
            drop_in.bind(function, number, length, np.random.default_rng(1))
            for function in (drop_in.original, drop_in.drop_in)
        ]
        loops = [repeated(call) for call in calls]
        times = interleaved([loop for loop, _ in loops], 3, settings.settle(2))
        theirs, ours = (taken / count for taken, (_, count) in zip(times, loops, strict=True))
        yield Figure(
            section="drop-ins",
            case=drop_in.title,
            variant=size,
            value=theirs.min() / ours.min(),
            median=float(np.median(theirs / ours)),
            unit="× as fast as the original",
            counts=scale == 1.0,
            detail={"µs": ours.min() * 1e6, "original's µs": theirs.min() * 1e6},
        )
