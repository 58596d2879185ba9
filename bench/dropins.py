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


FAMILIES: tuple[Callable[[], Iterator[DropIn]], ...] = (_scipy_special, _torch_functional)
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
