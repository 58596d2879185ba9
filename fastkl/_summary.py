"""What the command line says about a column of results: exact statistics of any number of values in fixed memory."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Chunks = Callable[[], Iterable[NDArray[Any]]]

QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}

_DIGIT_BITS = 16
_GATHERED = 1 << 21  # values sorted in memory at most, 16 MiB of float64


class RunningMoments:
    """Counts, mean and standard error of values that arrive in pieces.

    The mean is that of all values, so one NaN makes it NaN and one infinite value makes it infinite; ``finite_mean``
    leaves those out. Pieces are merged by the pairwise update of Chan, Golub and LeVeque (1983), which does not
    subtract large sums of squares.
    """

    def __init__(self) -> None:
        self.count = self.nan = self.inf = 0
        self._finite = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take in a 1-D array of float values."""
        self.count += values.size
        if not np.isfinite(values).all():
            numbers = values[~np.isnan(values)]
            finite = numbers[np.isfinite(numbers)]
            self.nan += values.size - numbers.size
            self.inf += numbers.size - finite.size
        else:
            numbers = finite = values
        if numbers.size:
            self._min = min(self._min, float(numbers.min()))
            self._max = max(self._max, float(numbers.max()))
        if finite.size:
            mean = float(finite.mean(dtype=np.float64))
            squares = float(np.square(finite - mean, dtype=np.float64).sum())
            step = mean - self._mean
            self._finite += finite.size
            share = finite.size / self._finite
            self._mean += step * share
            self._squares += squares + step * step * (1 - share) * finite.size

    @property
    def finite_mean(self) -> float:
        return self._mean if self._finite else math.nan

    @property
    def finite_standard_error(self) -> float:
        return math.sqrt(self._squares / (self._finite - 1) / self._finite) if self._finite > 1 else math.nan

    @property
    def mean(self) -> float:
        if self.nan:
            return math.nan
        return self._min + self._max if self.inf else self.finite_mean  # inf - inf is NaN, as it should be

    @property
    def standard_error(self) -> float:
        return self.finite_standard_error if math.isfinite(self.mean) else math.nan

    @property
    def min(self) -> float:
        return self._min if self.count > self.nan else math.nan

    @property
    def max(self) -> float:
        return self._max if self.count > self.nan else math.nan


def summarize(moments: RunningMoments, chunks: Chunks) -> dict[str, float]:
    """The summary of one metric as a dict of numbers.

    Parameters
    ----------
    moments : RunningMoments
        Of all the values.
    chunks : callable
        Each call iterates once more over the same values, 1-D arrays of one float type.
    """
    quantiles = _quantiles(chunks, moments.count - moments.nan)
    return {
        "mean": moments.mean,
        "standard_error": moments.standard_error,
        "finite_mean": moments.finite_mean,
        "finite_standard_error": moments.finite_standard_error,
        "min": moments.min,
        **quantiles,
        "max": moments.max,
        "inf": moments.inf,
        "nan": moments.nan,
    }


def _quantiles(chunks: Chunks, n: int) -> dict[str, float]:
    """The ``QUANTILES`` of the ``n`` values that are not NaN, by linear interpolation as ``numpy.quantile`` has it."""
    if n == 0:
        return dict.fromkeys(QUANTILES, math.nan)
    positions = {name: (n - 1) * quantile for name, quantile in QUANTILES.items()}
    ranks = {int(position) for position in positions.values()}
    value_at = _order_statistics(chunks, sorted(ranks | {min(rank + 1, n - 1) for rank in ranks}), n)
    quantiles = {}
    for name, position in positions.items():
        below, part = int(position), position - int(position)
        low, high = value_at[below], value_at[min(below + 1, n - 1)]
        # Equal neighbours, infinite ones among them, need no interpolation.
        quantiles[name] = low if part == 0 or low == high else low + (high - low) * part
    return quantiles


def _order_statistics(chunks: Chunks, ranks: list[int], n: int) -> dict[int, float]:
    """The values of the given ranks among ``n``, exactly, by radix selection.

    Floats order like the integers ``_keys`` makes of them. As long as too many keys are candidates to be sorted in
    memory, one more pass counts the next 16 bits of those that may have one of the ranks.
    """
    key_bits = 64
    known = 0  # leading bits known of every candidate
    groups = {0: (0, ranks)}  # leading bits: (how many keys are smaller than all of the group, ranks in the group)
    candidates = n
    while candidates > _GATHERED and known < key_bits:
        known += _DIGIT_BITS
        counts = {prefix: np.zeros(1 << _DIGIT_BITS, np.int64) for prefix in groups}
        for values in chunks():
            leading = _keys(values) >> np.uint64(key_bits - known)
            for prefix, count in counts.items():
                inside = leading[leading >> np.uint64(_DIGIT_BITS) == prefix]
                digits = inside.astype(np.uint16)  # the last 16 of the leading bits
                count += np.bincount(digits, minlength=1 << _DIGIT_BITS)
        finer: dict[int, tuple[int, list[int]]] = {}
        candidates = 0
        for prefix, (smaller, group_ranks) in groups.items():
            count = counts[prefix]
            up_to = smaller + np.cumsum(count)
            for rank in group_ranks:
                digit = int(np.searchsorted(up_to, rank, side="right"))
                key = prefix << _DIGIT_BITS | digit
                if key not in finer:
                    finer[key] = (int(up_to[digit] - count[digit]), [])
                    candidates += int(count[digit])
                finer[key][1].append(rank)
        groups = finer
    if known == key_bits:
        return {rank: _value(key) for key, (_, group_ranks) in groups.items() for rank in group_ranks}

    gathered: dict[int, list[NDArray[np.uint64]]] = {prefix: [] for prefix in groups}
    for values in chunks():
        keys = _keys(values)
        leading = keys >> np.uint64(key_bits - known) if known else np.zeros_like(keys)
        for prefix, pieces in gathered.items():
            pieces.append(keys[leading == prefix])
    value_at: dict[int, float] = {}
    for prefix, (smaller, group_ranks) in groups.items():
        keys = np.concatenate(gathered.pop(prefix))
        keys.sort()
        value_at.update((rank, _value(int(keys[rank - smaller]))) for rank in group_ranks)
    return value_at


def _keys(values: NDArray[Any]) -> NDArray[np.uint64]:
    """uint64 keys in the order of the values, NaN left out."""
    numbers = values[~np.isnan(values)].astype(np.float64, copy=False)
    all_bits_if_negative = (numbers.view(np.int64) >> 63).view(np.uint64)
    keys: NDArray[np.uint64] = numbers.view(np.uint64) ^ (all_bits_if_negative | np.uint64(1 << 63))
    return keys


def _value(key: int) -> float:
    """The float that ``_keys`` made this key of."""
    bits = key ^ (1 << 63) if key >> 63 else key ^ ((1 << 64) - 1)
    return float(np.uint64(bits).view(np.float64))
