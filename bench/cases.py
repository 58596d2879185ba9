"""What is measured: the contract's targets, the kernels, and the rows they are measured on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

import fastkl

ROW_LENGTH = 128
COUNTING_MIB = 1024
"""Inputs of at least this size count: well past every last-level cache."""

AT_LEAST, AT_MOST = "≥", "≤"
_HOLDS = {AT_LEAST: operator.ge, AT_MOST: operator.le}


@dataclass(frozen=True)
class Target:
    """A bound of the contract; ``by_level`` where it differs between levels."""

    sense: str
    value: float | None = None
    by_level: dict[str, float] = field(default_factory=dict)

    def at(self, level: str | None) -> float | None:
        return self.by_level.get(level, self.value)

    def holds(self, figure: float, level: str | None) -> bool:
        return _HOLDS[self.sense](figure, self.at(level))


def _bandwidth(avx512: float, avx2: float) -> Target:
    return Target(AT_LEAST, by_level={"avx512": avx512, "avx2": avx2})


def _drop_ins() -> dict[str, Target | None]:
    """No slower than the original; what is asked of bare C functions for one pair, and of bulk input."""
    bare = ("special.rel_entr", "special.kl_div", "special.entr", "numkong.kld", "numkong.jsd", "kl_div")
    return {
        "": Target(AT_LEAST, 1),
        **{f"{case}; one pair, K=64": Target(AT_LEAST, 0.5) for case in bare},
        **{f"{case}; 1,000,000 × 128": Target(AT_LEAST, 8) for case in bare[:3]},
        **{
            f"{case}; 1,000,000 × 128": Target(AT_LEAST, 15)
            for case in ("stats.entropy(p)", "stats.entropy(p, q)", "distance.jensenshannon")
        },
        **{f"distance.{name}; 2,000 × 2,000 × 128": Target(AT_LEAST, 20) for name in ("cdist", "pdist")},
        "numpy.add": None,  # what stands in for nothing
        "jax: KL float32": None,
        "jax: distillation float32": None,
        "jax: distillation float32 and its gradient": None,
    }


# The one place where the targets stand: section -> "case; variant", case or variant -> target. A case may go without what
# follows its first comma. The entry "" holds for everything in its section that has none of its own; what has no entry,
# or None, is shown without a target.
CONTRACT: dict[str, dict[str, Target | None]] = {
    "bandwidth": {
        "KL float64": _bandwidth(0.90, 0.75),
        "KL float32": _bandwidth(0.90, 0.80),
        "JS float64": _bandwidth(0.65, 0.45),
        "JS float32": _bandwidth(0.70, 0.55),
        "KL float16": _bandwidth(0.60, 0.40),
        "KL bfloat16": _bandwidth(0.60, 0.40),
    },
    "sweep": {"": Target(AT_MOST, 2.0)},
    "layouts": {title: Target(AT_MOST, 1.5) for title in ("axis=0", "Fortran order", "q is one row", "p is one row")},
    "overhead": {
        "kl_divergence, one pair": Target(AT_MOST, 3.0),
        "import": Target(AT_MOST, 1.5),
    },
    "threads": {"": Target(AT_LEAST, 1.8)},
    "memory": {"": Target(AT_MOST, 1.0)},
    "peers": {
        "NumPy, two lines": Target(AT_LEAST, 8),
        "SciPy special.rel_entr": Target(AT_LEAST, 15),
        "SciPy stats.entropy": Target(AT_LEAST, 40),
        "SciPy spatial.distance.jensenshannon": Target(AT_LEAST, 40),
        "PyTorch kl_div over log_softmax": Target(AT_LEAST, 10),
        "NumKong": Target(AT_LEAST, 2),
    },
    "gaussian full": {f"NumPy, d={d}": Target(AT_LEAST, 10) for d in (3, 8, 16)},
    "gaussian": {
        "var, rows, float64": _bandwidth(0.90, 0.75),
        "logvar, N(0, I), float32": _bandwidth(0.90, 0.75),
    },
    "logits": {
        **{f"KL float32, K={length}": _bandwidth(0.60, 0.40) for length in (32_768, 151_936)},
        **{f"KL {dtype}, K=32768": _bandwidth(0.40, 0.25) for dtype in ("float16", "bfloat16")},
    },
    "logits peers": {"PyTorch log_softmax, kl_div": Target(AT_LEAST, 10)},
    "drop-ins": _drop_ins(),
    "accuracy": {
        f"{title} {dtype}": Target(AT_MOST, 8 if dtype == "float64" else 4)
        for title in (
            *("KL", "KL unnormalised", "JS", "Jeffreys", "cross-entropy", "entropy", "total variation", "Hellinger"),
        )
        for dtype in ("float64", "float32", "float16", "bfloat16")
    },
}


def target_for(section: str, case: str, variant: str) -> Target | None:
    targets = CONTRACT.get(section, {})
    kind = case.split(",")[0]
    keys = (f"{case}; {variant}", case, f"{kind}; {variant}", kind, variant, "")
    return next((targets[key] for key in keys if key in targets), None)


@dataclass(frozen=True)
class Kernel:
    """A public function with its options, on rows of one dtype."""

    title: str
    function: str
    dtype: str
    options: dict = field(default_factory=dict)
    rows: str = "ordinary"

    @property
    def name(self) -> str:
        return f"{self.title} {self.dtype}"

    def bind(self, pairs: Pairs, n_threads: int | None = None) -> Callable[[], object]:
        """A call without arguments over all pairs; what it allocates, save for ``score``, is the result array once."""
        operands = (pairs.stacked,) if self.function == "entropy" else (pairs.p, pairs.q)
        return self.bind_operands(operands, n_threads)

    def bind_operands(self, operands: tuple, n_threads: int | None = None, axis: int = -1) -> Callable[[], object]:
        options = dict(self.options, axis=axis, n_threads=n_threads)
        if self.dtype == "bfloat16":
            options["dtype"] = "bfloat16"
        if self.function != "score":
            shape = list(np.broadcast_shapes(*(operand.shape for operand in operands)))
            del shape[axis]
            # Filled, so that the pages of the result are there before the first timed call.
            options["out"] = np.full(shape, np.nan, np.float64 if self.dtype in ("float64", "int32") else np.float32)
        return partial(getattr(fastkl, self.function), *operands, **options)


CONTRACT_KERNELS = (
    Kernel("KL", "kl_divergence", "float64"),
    Kernel("KL", "kl_divergence", "float32"),
    Kernel("JS", "js_divergence", "float64"),
    Kernel("JS", "js_divergence", "float32"),
    Kernel("KL", "kl_divergence", "float16"),
    Kernel("KL", "kl_divergence", "bfloat16"),
)

OTHER_KERNELS = tuple(
    Kernel(title, function, dtype, options, rows)
    for dtype in ("float64", "float32")
    for title, function, options, rows in (
        ("KL unnormalised", "kl_divergence", {"normalize": False}, "ordinary"),
        ("KL of nearly equal rows", "kl_divergence", {}, "nearly equal"),
        ("Jeffreys", "jeffreys_divergence", {}, "ordinary"),
        ("JS distance", "js_distance", {}, "ordinary"),
        ("cross-entropy", "cross_entropy", {}, "ordinary"),
        ("entropy", "entropy", {}, "ordinary"),
        ("Rényi α=2", "renyi_divergence", {"alpha": 2.0}, "ordinary"),
        ("total variation", "total_variation", {}, "ordinary"),
        ("Hellinger", "hellinger_distance", {}, "ordinary"),
        ("Wasserstein", "wasserstein_distance", {}, "ordinary"),
        ("score KL, reverse KL, JS", "score", {"metrics": ("kl", "reverse_kl", "js")}, "ordinary"),
    )
) + (
    Kernel("JS", "js_divergence", "float16"),
    Kernel("JS", "js_divergence", "bfloat16"),
    Kernel("KL of counts", "kl_divergence", "int32", {}, "counts"),
)


class Pairs:
    """Pairs of rows in one allocation: ``p`` is its first half, ``q`` its second."""

    def __init__(self, both: np.ndarray):
        self.both = both

    @property
    def p(self) -> np.ndarray:
        return self.both[0]

    @property
    def q(self) -> np.ndarray:
        return self.both[1]

    @property
    def stacked(self) -> np.ndarray:
        """All rows of p and q below each other, for functions of one distribution."""
        return self.both.reshape(-1, self.both.shape[-1])

    @property
    def elements(self) -> int:
        """Elements of one operand."""
        return self.p.size

    def as_float64(self) -> tuple[np.ndarray, np.ndarray]:
        """The same bytes as two float64 vectors."""
        return self.p.reshape(-1).view(np.float64), self.q.reshape(-1).view(np.float64)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns of the nearest bfloat16 numbers (ties to even) of finite values."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values in the storage of ``dtype``; no positive value becomes zero."""
    if dtype == "bfloat16":
        return to_bfloat16(values)
    if dtype == "float16":
        return np.where(values > 0, np.maximum(values, np.finfo(np.float16).smallest_subnormal), 0).astype(dtype)
    return values.astype(dtype)


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=-1, keepdims=True)


def _dirichlet(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows drawn evenly from all distributions over their cells."""
    return _normalised(rng.standard_exponential(shape))


def _ordinary(shape, rng, dtype):
    return _dirichlet(shape, rng), _dirichlet(shape, rng)


def _with_zeros(shape, rng, dtype):
    """A third of p's cells is empty, and half of these in q too, so that KL(p‖q) is finite."""
    p, q, empty = rng.standard_exponential(shape), rng.standard_exponential(shape), rng.random(shape)
    empty[:, 0] = 1
    return _normalised(np.where(empty < 1 / 3, 0, p)), _normalised(np.where(empty < 1 / 6, 0, q))


def _nearly_equal(shape, rng, dtype):
    """A relative difference of 1e-9 for float64, and of about its last digits for the shorter types."""
    p = _dirichlet(shape, rng)
    noise = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3}.get(dtype, 1e-2)
    return p, _normalised(p * (1 + noise * rng.standard_normal(shape)))


def _disjoint(shape, rng, dtype):
    p, q = rng.standard_exponential(shape), rng.standard_exponential(shape)
    p[:, 1::2] = 0
    q[:, 0::2] = 0
    return _normalised(p), _normalised(q)


def _peaked(shape, rng, dtype):
    """Softmax of logits with a standard deviation of 4."""
    return tuple(_normalised(np.exp(4 * rng.standard_normal(shape))) for _ in range(2))


def _wide(shape, rng, dtype):
    """Numbers over nearly all of the dtype's range; for float64 from 1e-300 to 1e300."""
    low, high = {"float64": (-300, 300), "float16": (-5, 4)}.get(dtype, (-37, 37))
    return tuple(10 ** rng.uniform(low, high, shape) for _ in range(2))


def _one_cell(shape, rng, dtype):
    """Nearly all of the mass in one cell."""
    rest = {"float64": 1e-20, "float16": 1e-6}.get(dtype, 1e-9)
    p, q = (rest * rng.standard_exponential(shape) for _ in range(2))
    p[:, 0] = q[:, 0] = 1
    return p, q


def _counts(shape, rng, dtype):
    """Whole numbers, with other sums in p than in q."""
    return tuple(np.ceil(scale * rng.standard_exponential(shape)) for scale in (50, 100))


ROWS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "ordinary": _ordinary,
    "with zeros": _with_zeros,
    "nearly equal": _nearly_equal,
    "equal but for one bit": _ordinary,
    "disjoint": _disjoint,
    "peaked": _peaked,
    "wide range": _wide,
    "one heavy cell": _one_cell,
    "counts": _counts,
}
"""Kind of rows -> function of (shape, generator, dtype) that gives p and q as float64."""


def make_rows(rows: str, shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """p and q of one kind, in the storage of ``dtype``."""
    p, q = (store(values, dtype) for values in ROWS[rows](shape, rng, dtype))
    if rows == "equal but for one bit":
        q = p.copy()
        q.view(f"u{q.itemsize}")[:, 0] += 1
    return p, q


def make_pairs(mib: float, dtype: str, row_length: int = ROW_LENGTH, rows: str = "ordinary", seed: int = 1) -> Pairs:
    """Pairs of rows that fill ``mib`` MiB in all, p and q together, and a page or a row more.

    Two arrays exactly a power of two apart fall on the same banks of the memory, whose reading then is slower by half
    for everybody; arrays that were made apart don't lie like that, hence the page.

    A random block of 2²¹ elements is laid out again and again, each time rotated by other numbers of rows for p and
    for q, so that the memory is all distinct, the pairs too, and a gibibyte takes about a second to make.
    """
    storage = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    row_bytes = row_length * storage.itemsize
    count = max(int(mib * 2**20) // (2 * row_bytes), 4) + -(-4096 // row_bytes)
    block_length = min(count, max(2**21 // row_length, 4))
    blocks = make_rows(rows, (block_length, row_length), dtype, np.random.default_rng(seed))
    both = np.empty((2, count, row_length), storage)
    steps = (7919, 7919 if rows == "nearly equal" else 5209)
    for target, block, step in zip(both, blocks, steps, strict=True):
        for i, start in enumerate(range(0, count, block_length)):
            part = target[start : start + block_length]
            turn = i * step % block_length
            head = min(block_length - turn, len(part))
            part[:head] = block[turn : turn + head]
            part[head:] = block[: len(part) - head]
    return Pairs(both)
