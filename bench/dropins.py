"""Section ``drop-ins``: an original's time over that of its drop-in, the same call in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import fastkl
from bench.report import Figure
from bench.timing import Settings, interleaved, repeated

LARGE = {"1,000,000 × 128": (1_000_000, 128)}
SIZES = {"one pair, K=64": (1, 64), "1,000 × 100": (1_000, 100), **LARGE}


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


def pair_of(keywords: dict, operands: int = 2, dtype: str = "float64") -> Callable:
    """The way to bind a function of one or two arrays of rows."""

    def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        arrays = [rows_of(rows, length, rng, dtype) for _ in range(operands)]
        return lambda: function(*arrays, **keywords)

    return bind


# What compares each row of a table with each of another: the rows of a size are the pairs.
ALL_PAIRS = {"100 × 100 × 64": (10_000, 64), "2,000 × 2,000 × 128": (4_000_000, 128)}


def all_pairs_of(keywords: dict, operands: int = 2) -> Callable:
    """The way to bind a function of one or two tables, each row of which is compared with each."""

    def bind(function: Callable, pairs: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        tables = [rows_of(math.isqrt(pairs), length, rng) for _ in range(operands)]
        return lambda: function(*tables, **keywords)

    return bind


def _scipy_stats() -> Iterator[DropIn]:
    import scipy.stats

    from fastkl.compat import scipy_stats

    entropy = scipy.stats.entropy, scipy_stats.entropy
    yield DropIn("stats.entropy(p)", *entropy, pair_of({"axis": -1}, operands=1), SIZES)
    yield DropIn("stats.entropy(p, q)", *entropy, pair_of({"axis": -1}), SIZES)


def _scipy_distance() -> Iterator[DropIn]:
    from scipy.spatial import distance

    from fastkl.compat import scipy_distance

    js = {"metric": "jensenshannon"}
    yield DropIn(
        "distance.jensenshannon", distance.jensenshannon, scipy_distance.jensenshannon, pair_of({"axis": -1}), SIZES
    )
    yield DropIn("distance.cdist", distance.cdist, scipy_distance.cdist, all_pairs_of(js), ALL_PAIRS)
    yield DropIn("distance.pdist", distance.pdist, scipy_distance.pdist, all_pairs_of(js, operands=1), ALL_PAIRS)


def _numkong() -> Iterator[DropIn]:
    import numkong

    from fastkl.compat import numkong as drop_in

    for name in ("kld", "jsd"):
        yield DropIn(f"numkong.{name}", getattr(numkong, name), getattr(drop_in, name), pair_of({}), SIZES)
        every_thread = all_pairs_of({"metric": name, "threads": fastkl.get_num_threads()})
        yield DropIn(f"numkong.cdist, {name}", numkong.cdist, drop_in.cdist, every_thread, ALL_PAIRS)


def _torch_distributions() -> Iterator[DropIn]:
    import torch
    from torch import distributions
    from torch.distributions.kl import kl_divergence as original

    from fastkl.compat import torch_distributions

    def bound(make: Callable[[torch.Tensor], distributions.Distribution]) -> Callable:
        def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
            p, q = (make(torch.from_numpy(rows_of(rows, length, rng, "float32"))) for _ in range(2))
            return lambda: function(p, q)

        return bind

    def multivariate(x: torch.Tensor) -> distributions.Distribution:
        n = math.isqrt(x.shape[-1])
        factor = x[..., : n * n].reshape(*x.shape[:-1], n, n).tril() + torch.eye(n)
        return distributions.MultivariateNormal(x[..., :n], scale_tril=factor, validate_args=False)

    makers = {
        "Normal": lambda x: distributions.Normal(x, x + 0.5, validate_args=False),
        "Independent Normal": lambda x: distributions.Independent(distributions.Normal(x, x + 0.5), 1),
        "Categorical, probs": lambda x: distributions.Categorical(x, validate_args=False),
        "Categorical, logits": lambda x: distributions.Categorical(logits=x, validate_args=False),
        "MultivariateNormal, √K": multivariate,
    }
    for name, make in makers.items():
        yield DropIn(f"torch.distributions {name}", original, torch_distributions.kl_divergence, bound(make), SIZES)


def _torch() -> Iterator[DropIn]:
    """``fastkl.torch`` against the way through NumPy that it saves: the functions for arrays, and both conversions."""
    import torch

    import fastkl.torch

    def through_numpy(name: str) -> Callable:
        function = getattr(fastkl, name)
        return lambda p, q: torch.from_numpy(np.asarray(function(p.numpy(), q.numpy())))

    def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        p, q = (torch.from_numpy(rows_of(rows, length, rng, "float32")) for _ in range(2))
        return lambda: function(p, q)

    for name in ("kl_divergence", "kl_divergence_from_logits", "gaussian_kl"):
        yield DropIn(f"fastkl.torch.{name}", through_numpy(name), getattr(fastkl.torch, name), bind, SIZES)


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


def _scipy_special() -> Iterator[DropIn]:
    import scipy.special

    from fastkl.compat import scipy_special

    def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        # Into memory that is there: the system takes as long for the pages of a new result as a kernel for the numbers.
        arrays = [rows_of(rows, length, rng, dtype) for _ in range(function.nin)]
        out = np.zeros_like(arrays[0]) if into else None
        return lambda: function(*arrays, out=out)

    for name in ("rel_entr", "kl_div", "entr"):
        functions = getattr(scipy.special, name), getattr(scipy_special, name)
        for dtype, into in (("float64", False), ("float64", True), ("float32", True)):
            title = f"special.{name}, {dtype}{', out=' if into else ''}"
            yield DropIn(title, *functions, bind, SIZES)
            if functions[1].nin == 2:  # what memory allows: one addition for each element
                yield DropIn(f"numpy.add, beside {title}", np.add, functions[1], bind, LARGE)


def _torch_functional() -> Iterator[DropIn]:
    import torch

    from fastkl.compat import torch_functional

    def bind(function: Callable, rows: int, length: int, rng: np.random.Generator) -> Callable[[], object]:
        input, target = (torch.from_numpy(rows_of(rows, length, rng, "float32")).to(dtype) for _ in range(2))
        input.log_()
        if log_target:
            target.log_()
        input.requires_grad_(gradient)

        def call() -> object:
            value = function(input, target, reduction=reduction, log_target=log_target)
            return torch.autograd.grad(value, input)[0] if gradient else value

        return call

    functions = torch.nn.functional.kl_div, torch_functional.kl_div
    for dtype in (torch.float32, torch.bfloat16):
        for log_target in (False, True):
            for reduction, gradient in (("none", False), ("batchmean", False), ("batchmean", True)):
                parts = ("kl_div", str(dtype).removeprefix("torch."), "log_target" * log_target, reduction)
                title = ", ".join(filter(None, (*parts, "with gradient" * gradient)))
                yield DropIn(title, *functions, bind, SIZES)


FAMILIES: tuple[Callable[[], Iterator[DropIn]], ...] = (
    _scipy_special,
    _scipy_stats,
    _scipy_distance,
    _numkong,
    _torch_functional,
    _torch_distributions,
    _torch,
    _jax,
)
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
