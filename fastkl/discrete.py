"""Measures of how far one discrete distribution is from another, over millions of pairs of them.

A *row* is one distribution, along the reduced axis; all other axes are the batch. ``p`` is the distribution that the
expectation is taken over: ``kl_divergence(p, q)`` is D(p‖q), the *forward* divergence when ``q`` is the model being
fitted.

Options common to all functions
-------------------------------
p, q : array_like
    Non-negative numbers: probabilities, or weights, or counts. The reduced axis must be equally long in both; the other
    axes broadcast as in NumPy, without copies. float64, float32, float16, bfloat16 (``ml_dtypes.bfloat16``), all
    integers and bool, in any memory layout. Lists work, and so does what ``numpy.asarray`` takes. Dask arrays come back
    lazy, and pandas frames of which each row is a distribution, or each column with ``axis=0``, as a series with their
    index: :mod:`fastkl._containers`.
normalize : bool
    Divide each row by its sum (the default). With False the sum is over the numbers as they are, and may be negative.
base : float, optional
    The logarithm's base, a number > 0 other than 1: 2 gives bits. By default results are in nats.
axis : int
    The axis to reduce, the last by default, of the operands once axes of length 1 before the first have made their
    numbers of axes equal.
keepdims : bool
    Keep the reduced axis, with length 1.
out : numpy.ndarray, optional
    Where to put the results; of the result's shape and dtype. It may overlap an operand.
n_threads : int, optional
    The largest number of threads to use. By default that of ``get_num_threads()``; small calls use one thread.
invalid : {"nan", "raise"}
    What to do about a row that holds NaN, an infinite or a negative number, or whose sum is zero with
    ``normalize=True``: give NaN for it, with no warning and nothing else touched (the default), or raise ValueError
    that tells how many rows are bad, which is the first and what is wrong with it. ``out`` is filled either way.
dtype : {"bfloat16"}, optional
    Take operands of uint16 for bfloat16 bit patterns.

Every function returns float32 for operands of float32, float16 and bfloat16 (computed in float32 or better, summed in
float64), float64 for float64, integers and bool, what NumPy's promotion gives for mixed operands, and a NumPy scalar
where no axis is left.

Every function raises ValueError, with the shapes or the value in question, for operands that do not fit each other, for
empty rows, for an ``out`` of another shape or dtype or that is read-only, and for options with impossible values; and
TypeError, saying what to pass instead, for complex, object, string, longdouble, masked and sparse operands.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from fastkl._containers import in_containers
from fastkl._kernels._batch import FAMILIES, OPS, TYPES, pair, reduce
from fastkl._runtime import threads_for
from fastkl._validation import (
    Contained,
    bin_positions,
    deliver,
    invalid_choice,
    js_weight,
    log_base,
    metric_names,
    renyi_order,
    row_pairs,
    target_for,
    thread_bound,
    weights_fault,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import SupportsIndex

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from fastkl._validation import Array, Result, Rows

__all__ = [
    "cross_entropy",
    "entropy",
    "hellinger_distance",
    "jeffreys_divergence",
    "js_distance",
    "js_divergence",
    "kl_divergence",
    "renyi_divergence",
    "score",
    "total_variation",
    "wasserstein_distance",
]

_DISCRETE = FAMILIES["discrete"]


def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Kullback-Leibler divergence D(p‖q) = Σ p log(p/q) of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    A bin with p = 0 adds nothing; one with p > 0 and q = 0 makes the divergence infinite. Normalised, the result is
    never negative, and 0 for equal rows. The reverse divergence is ``kl_divergence(q, p)``.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.kl_divergence([[0.5, 0.5], [0.5, 0.5], [1, 3]], [[0.5, 0.5], [1.0, 0.0], [3, 1]])
    array([0.        ,        inf, 0.54930614])
    """
    return _reduce("kl", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, log_base(base))


def jeffreys_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Jeffreys' divergence D(p‖q) + D(q‖p) = Σ (p − q) log(p/q) of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    It is symmetric in ``p`` and ``q``. A bin that is 0 in both adds nothing; one that is 0 in one of them makes the
    divergence infinite. It is never negative, and 0 for equal rows.

    References
    ----------
    H. Jeffreys, "An Invariant Form for the Prior Probability in Estimation Problems", Proceedings of the Royal Society
    of London A 186 (1946) 453-461.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.jeffreys_divergence([[1, 3], [1, 0]], [[3, 1], [1, 1]])
    array([1.09861229,        inf])
    """
    return _reduce("jeffreys", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, log_base(base))


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Jensen-Shannon divergence w D(p‖m) + (1 − w) D(q‖m), m = w p + (1 − w) q, of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    weight : float
        The weight w of ``p`` in the mixture, between 0 and 1.
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for a ``weight`` outside [0, 1].

    Notes
    -----
    It is finite for all pairs: with w = 1/2 and normalised rows it lies between 0, for equal rows, and log 2, for
    disjoint ones. With a weight of 0 or 1 it is 0. Its square root is a metric: :func:`js_distance`.

    References
    ----------
    J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37 (1991)
    145-151.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.js_divergence([[1, 1], [1, 0]], [[1, 1], [0, 1]], base=2)
    array([0., 1.])
    """
    unit = log_base(base)
    return _reduce("js", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, unit, js_weight(weight))


def js_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Jensen-Shannon distance of each pair of rows: the square root of :func:`js_divergence`.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    weight : float
        The weight w of ``p`` in the mixture, between 0 and 1.
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The distance of each pair of rows, the root of a number of nats or of units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for a ``weight`` outside [0, 1], or for a ``base`` below 1, in which
        the divergence is negative.

    Notes
    -----
    It is finite for all pairs, and with w = 1/2 a metric: symmetric, 0 only for equal rows, and no longer than a way
    round. The root is taken of the divergence in the given base, so it is 1 for disjoint rows and ``base=2``.

    References
    ----------
    D. M. Endres and J. E. Schindelin, "A New Metric for Probability Distributions", IEEE Transactions on Information
    Theory 49 (2003) 1858-1860.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.js_distance([[1, 1], [1, 0]], [[1, 1], [0, 1]], base=2)
    array([0., 1.])
    """
    unit, w = log_base(base, above=1.0), js_weight(weight)
    return _reduce("js_distance", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, unit, w)


def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The cross-entropy −Σ p log q of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The cross-entropy of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    It is H(p) + D(p‖q), the number of nats that a code made for ``q`` takes for what comes from ``p``. A bin with p = 0
    adds nothing; one with p > 0 and q = 0 makes it infinite.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27 (1948) 379-423; I. J.
    Good, "Some Terminology and Notation in Information Theory", Proceedings of the IEE C 103 (1956) 200-204.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.cross_entropy([[1, 1], [1, 1]], [[1, 3], [1, 0]])
    array([0.83698822,        inf])
    """
    return _reduce("cross_entropy", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, log_base(base))


def entropy(
    p: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Shannon entropy −Σ p log p of each row.

    Parameters
    ----------
    p : array_like
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The entropy of each row, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    A bin with p = 0 adds nothing. Normalised, the entropy lies between 0, for a row with a single bin that is not 0,
    and log K, for a uniform one.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27 (1948) 379-423.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.entropy([[1, 0, 0, 0], [1, 1, 1, 1]], base=2)
    array([0., 2.])
    """
    return _reduce("entropy", p, p, normalize, axis, keepdims, out, n_threads, invalid, dtype, log_base(base))


def renyi_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Rényi divergence log(Σ pᵅ q¹⁻ᵅ) / (α − 1) of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    alpha : float
        The order α, at least 0. 1 gives D(p‖q), 0 gives −log of what ``q`` has where p > 0, and inf gives log max(p/q).
    normalize, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for an ``alpha`` below 0 or NaN.

    Notes
    -----
    It does not decrease with α. A bin with p = 0 adds nothing; one with p > 0 and q = 0 makes the divergence infinite
    for α ≥ 1 and adds nothing otherwise. Disjoint rows have an infinite divergence for every α.

    References
    ----------
    A. Rényi, "On Measures of Entropy and Information", Proceedings of the Fourth Berkeley Symposium on Mathematical
    Statistics and Probability 1 (1961) 547-561; T. van Erven and P. Harremoës, "Rényi Divergence and Kullback-Leibler
    Divergence", IEEE Transactions on Information Theory 60 (2014) 3797-3820.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.renyi_divergence([[1, 1], [1, 3]], [[1, 1], [3, 1]], 2)
    array([0.        , 0.84729786])
    """
    unit, order = log_base(base), renyi_order(alpha)
    return _reduce("renyi", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, unit, order)


def total_variation(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The total variation distance ½ Σ |p − q| of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The distance of each pair of rows, a number without unit; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    It is the largest difference between the probabilities that ``p`` and ``q`` give to one event. For normalised rows
    it lies between 0, for equal rows, and 1, for disjoint ones.

    References
    ----------
    A. B. Tsybakov, "Introduction to Nonparametric Estimation", Springer (2009), section 2.4.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.total_variation([[1, 1], [1, 3], [1, 0]], [[1, 1], [3, 1], [0, 1]])
    array([0. , 0.5, 1. ])
    """
    return _reduce("total_variation", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def hellinger_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Hellinger distance √(½ Σ (√p − √q)²) of each pair of rows.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The distance of each pair of rows, a number without unit; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    It is a metric. For normalised rows it lies between 0, for equal rows, and 1, for disjoint ones.

    References
    ----------
    E. Hellinger, "Neue Begründung der Theorie quadratischer Formen von unendlichvielen Veränderlichen", Journal für die
    reine und angewandte Mathematik 136 (1909) 210-271.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.hellinger_distance([[1, 1], [1, 3], [1, 0]], [[1, 1], [3, 1], [0, 1]])
    array([0.       , 0.3660254, 1.       ])
    """
    return _reduce("hellinger", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def wasserstein_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The 1-Wasserstein distance of each pair of rows over ordered bins: the earth mover's distance.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    positions : array_like, optional
        Where the bins are: K finite numbers that do not decrease, by default 0, 1, ..., K - 1.
    normalize, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`.

    Returns
    -------
    ndarray or scalar
        The distance of each pair of rows, in the unit of the positions; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for ``positions`` of another shape than (K,), decreasing or not finite.

    Notes
    -----
    It is Σᵢ |Pᵢ − Qᵢ| (xᵢ₊₁ − xᵢ) for i < K, with Pᵢ = p₁ + … + pᵢ, Qᵢ = q₁ + … + qᵢ and x the positions: the least
    work, mass times way, that makes ``q`` of ``p``. It is finite for all pairs, and 0 for equal rows.

    References
    ----------
    S. S. Vallender, "Calculation of the Wasserstein Distance between Probability Distributions on the Line", Theory of
    Probability and Its Applications 18 (1974) 784-786.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.wasserstein_distance([[1, 0, 0], [1, 1, 0]], [[0, 0, 1], [0, 1, 1]])
    array([2., 1.])
    >>> fastkl.wasserstein_distance([1, 0, 0], [0, 0, 1], positions=[0.0, 0.5, 10.0])
    np.float64(10.0)
    """
    return _reduce("wasserstein", p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype, positions=positions)


def score(
    p: ArrayLike,
    q: ArrayLike,
    metrics: Iterable[str] = ("kl", "reverse_kl", "js"),
    *,
    normalize: bool = True,
    base: float | None = None,
    weight: float = 0.5,
    alpha: float | None = None,
    positions: ArrayLike | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> dict[str, Result]:
    """Several measures of the same pairs of rows, in one pass over memory.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    metrics : iterable of str
        What to compute: ``"kl"``, ``"reverse_kl"`` (D(q‖p)), ``"jeffreys"``, ``"js"``, ``"js_distance"``,
        ``"cross_entropy"``, ``"entropy"`` (of ``p``), ``"renyi"``, ``"total_variation"``, ``"hellinger"``,
        ``"wasserstein"``. A name given twice counts once.
    weight : float
        For ``"js"`` and ``"js_distance"``: as in :func:`js_divergence`.
    alpha : float, optional
        For ``"renyi"``, which needs it: as in :func:`renyi_divergence`.
    positions : array_like, optional
        For ``"wasserstein"``: as in :func:`wasserstein_distance`.
    normalize, base, axis, keepdims, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.discrete`. ``base`` leaves ``"total_variation"``,
        ``"hellinger"`` and ``"wasserstein"`` alone, which have no logarithm.

    Returns
    -------
    dict
        For each metric, in the order given, what the function of that name returns; shape (...).

    Raises
    ------
    ValueError, TypeError
        As the function of each metric does, and ValueError for an unknown metric, none, or ``"renyi"`` without an
        ``alpha``.

    Notes
    -----
    What zeros and NaN give is said with the function of each metric, and where its formula comes from.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.score([[1, 3], [1, 0]], [[3, 1], [0, 1]], metrics=("kl", "total_variation"))
    {'kl': array([0.54930614,        inf]), 'total_variation': array([0.5, 1. ])}
    """
    names = metric_names(metrics, alpha=alpha)
    try:
        rows = row_pairs(p, q, axis, dtype)
    except Contained as contained:
        call = partial(
            score,
            metrics=names,
            normalize=normalize,
            base=base,
            weight=weight,
            alpha=alpha,
            positions=positions,
            axis=axis,
            keepdims=keepdims,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    unit = log_base(base, above=1.0 if "js_distance" in names else 0.0)
    mixture_weight = js_weight(weight)
    order = None if alpha is None else renyi_order(alpha)
    at = bin_positions(positions, rows.length)
    targets = {name: target_for(rows, keepdims, None)[0] for name in names}

    # The kernels take one parameter a pass, so the order of Rényi's divergence needs a second one.
    first_pass = [name for name in names if name != "renyi"]
    if first_pass:
        operations = tuple(OPS[name] for name in first_pass)
        outs = tuple(targets[name] for name in first_pass)
        _fill(outs, operations, rows, normalize, bound, unit, mixture_weight, at)
    if order is not None and "renyi" in targets:
        _fill((targets["renyi"],), (OPS["renyi"],), rows, normalize, bound, unit, order, None)
    fault = weights_fault(normalize)
    return {name: deliver(rows, target, None, fault, keepdims, None, invalid) for name, target in targets.items()}


def _reduce(
    name: str,
    p: ArrayLike,
    q: ArrayLike,
    normalize: bool,
    axis: SupportsIndex,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
    invalid: str,
    dtype: str | None,
    unit: float = 1.0,
    parameter: float = 0.0,
    positions: ArrayLike | None = None,
) -> Result:
    """One measure of all pairs of rows, with the checks that all functions have in common."""
    if (type(axis) is int and axis == -1 and keepdims is False and out is None and n_threads is None) and (
        type(invalid) is str and invalid == "nan" and dtype is None and positions is None
    ):
        value = pair(OPS[name], p, q, normalize, unit, parameter)
        if value is not None:
            return value
    try:
        rows = row_pairs(p, q, axis, dtype)
    except Contained as contained:
        call = partial(
            _reduce,
            name,
            normalize=normalize,
            axis=axis,
            keepdims=keepdims,
            out=out,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
            unit=unit,
            parameter=parameter,
            positions=positions,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    at = None if positions is None else bin_positions(positions, rows.length)
    target, copy_to = target_for(rows, keepdims, out)
    _fill((target,), (OPS[name],), rows, normalize, bound, unit, parameter, at)
    return deliver(rows, target, copy_to, weights_fault(normalize), keepdims, out, invalid)


def _fill(
    targets: tuple[Array, ...],
    operations: tuple[int, ...],
    rows: Rows,
    normalize: bool,
    n_threads: int | None,
    unit: float,
    parameter: float,
    positions: NDArray[np.float64] | None,
) -> None:
    """Run the kernels over all pairs of rows, one operation for each target, in nats divided by ``unit``."""
    types = rows.types
    p_type, q_type = types.operands
    reduce(
        _DISCRETE,
        operations,
        rows.operands,
        (TYPES[p_type], TYPES[q_type]),
        TYPES[types.row],
        rows.axis,
        rows.length,
        targets,
        threads_for(n_threads, targets[0].size * rows.length),
        normalize,
        unit,
        parameter,
        positions,
    )
