"""Section ``accuracy``: the worst error of every function, dtype and level over stated rows, against the bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import fastkl
from bench import cases
from bench.report import Figure
from bench.timing import Settings, at_level

ROW_LENGTHS = (1, 2, 3, 7, 8, 9, 16, 33, 128, 1000, 5000)
ROW_KINDS = tuple(cases.ROWS)
_ELEMENTS = 2000
"""Elements of one kind and row length, of at least one and at most eight pairs."""

_FUNCTIONS = (
    ("KL", "kl_divergence", {}),
    ("KL unnormalised", "kl_divergence", {"normalize": False}),
    ("JS", "js_divergence", {}),
    ("JS distance", "js_distance", {}),
    ("Jeffreys", "jeffreys_divergence", {}),
    ("cross-entropy", "cross_entropy", {}),
    ("entropy", "entropy", {}),
    ("Rényi α=2", "renyi_divergence", {"alpha": 2.0}),
    ("total variation", "total_variation", {}),
    ("Hellinger", "hellinger_distance", {}),
    ("Wasserstein", "wasserstein_distance", {}),
)
DTYPES = ("float64", "float32", "float16", "bfloat16")


def measure(settings: Settings) -> Iterator[Figure]:
    for dtype in DTYPES:
        inputs = list(_inputs(dtype))
        for title, function, options in _FUNCTIONS:
            exact = [_exact(function, p, q, options, dtype) for _, p, q in inputs]
            for level in settings.levels:
                with at_level(level):
                    yield _worst(title, function, options, dtype, level, inputs, exact)


def _inputs(dtype: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    for rows in ROW_KINDS:
        for row_length in ROW_LENGTHS:
            if rows == "disjoint" and row_length == 1:
                continue
            count = min(max(_ELEMENTS // row_length, 1), 8)
            yield f"{rows}, K={row_length}", *cases.make_rows(rows, (count, row_length), dtype, rng)


def _exact(function: str, p: np.ndarray, q: np.ndarray, options: dict, dtype: str) -> list[tuple]:
    """The exact value of every pair, and the scale of its error bound where that is not the value itself."""
    from bench.exact import exact_value, scale_unnormalised

    normalize = options.get("normalize", True)
    if dtype == "bfloat16":
        p, q = cases.from_bfloat16(p), cases.from_bfloat16(q)
    if function == "entropy":
        q = p
    values = [exact_value(function, x, y, normalize) for x, y in zip(p, q, strict=True)]
    if normalize:
        return [(value, None) for value in values]
    return [
        (value, None if value == np.inf else scale_unnormalised(x, y))
        for value, x, y in zip(values, p, q, strict=True)
    ]


def _worst(title, function, options, dtype, level, inputs, exact) -> Figure:
    from bench.exact import ulp_error

    result_dtype = np.float64 if dtype == "float64" else np.float32
    extra = {"dtype": "bfloat16"} if dtype == "bfloat16" else {}
    worst, where, pairs = -1.0, "", 0
    for (name, p, q), truths in zip(inputs, exact, strict=True):
        operands = (p,) if function == "entropy" else (p, q)
        got = getattr(fastkl, function)(*operands, **options, **extra)
        for value, (truth, scale) in zip(got, truths, strict=True):
            error = ulp_error(value, truth, result_dtype, scale)
            pairs += 1
            if error > worst:
                worst, where = error, name
    return Figure(
        section="accuracy",
        case=f"{title} {dtype}",
        level=level,
        value=worst,
        unit="ulp of Σφ+|Σp−Σq|" if options.get("normalize") is False else "ulp",
        detail={"worst rows": where, "pairs": str(pairs)},
    )
