"""What the training of a policy computes for each sampled action or token, from logarithms of its probability.

A sample x was drawn from p, the policy; logp and logq are the logarithms of its probability, or its density, under p
and under another policy q, and r = q(x)/p(x). All functions work number by number, on operands that broadcast.

Options common to all functions
-------------------------------
out : numpy.ndarray, optional
    Where to put the results; of the result's shape and dtype. It may overlap an operand.
n_threads : int, optional
    The largest number of threads to use, of what is computed by a kernel; NumPy's own arithmetic takes one.
invalid : {"nan", "raise"}
    What to do about operands that give no number (NaN; +inf, which is no logarithm of a probability; -inf in both
    logarithms, whose ratio is undefined): give NaN, with no warning and nothing else touched (the default), or raise
    ValueError that tells how many are bad, which is the first and what is wrong with it. ``out`` is filled either way.
dtype : {"bfloat16"}, optional
    Take operands of uint16 for bfloat16 bit patterns.

Operands broadcast as in NumPy, without copies. float64, float32, float16, bfloat16 (``ml_dtypes.bfloat16``), all
integers and bool are taken, in any memory layout, and computed in float64. Results are float32 where NumPy's promotion
gives float32 or less, and float64 otherwise; Python numbers take the others' type.

Every function raises ValueError, with the shapes or the value in question, for operands that do not fit each other, for
an ``out`` of another shape or dtype or that is read-only, and for options with impossible values; and TypeError, saying
what to pass instead, for complex, object, string, longdouble, masked and sparse operands.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastkl._containers import in_containers
from fastkl._kernels._batch import FAMILIES, GAUSSIAN_OPS, SCALES, TYPES, reduce
from fastkl._runtime import threads_for
from fastkl._validation import (
    Contained,
    clip_range,
    decoded,
    deliver,
    elements,
    estimator,
    invalid_choice,
    log_probability_fault,
    target_for,
    thread_bound,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from fastkl._validation import Array, Result, Rows

__all__ = ["clipped_ratio_objective", "kl_estimate"]

_GAUSSIAN = FAMILIES["gaussian"]
_PIECE = 8192  # numbers of each operand at a time: these and what is made of them fit the second-level cache


def kl_estimate(
    logp: ArrayLike,
    logq: ArrayLike,
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """An estimate of D(p‖q) from each sample of p: k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r, r = q(x)/p(x).

    Parameters
    ----------
    logp, logq : array_like
        The logarithms of each sample's probability, or density, under p, which it was drawn from, and under q. They
        broadcast.
    kind : {"k1", "k2", "k3"}
        The estimator. The mean of k1 and that of k3 over samples of p is D(p‖q) (k3: where q has no mass outside the
        support of p); k2 is biased, by little where p and q are close. k2 and k3 are never negative; k3 has by far
        the smallest variance of the unbiased two where p and q are close.
    out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.policy`.

    Returns
    -------
    ndarray or scalar
        The estimates, in nats; of the broadcast shape.

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    All three are right to a few of their last bits: k3 is e^x − 1 − x for x = logq − logp, which is computed as one
    quantity >= 0, by the kernel of :func:`fastkl.gaussian_kl`, and loses nothing where r is next to 1. It is 0 where
    logp = logq, and infinite only where its value is beyond the largest float.

    ==================  ==================  ====  ====  ====
    logp                logq                k1    k2    k3
    ==================  ==================  ====  ====  ====
    finite              -inf (r = 0)        +inf  +inf  +inf
    -inf (r = ∞)        finite              -inf  +inf  +inf
    -inf                -inf                NaN   NaN   NaN
    NaN or +inf in one                      NaN   NaN   NaN
    ==================  ==================  ====  ====  ====

    References
    ----------
    J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.kl_estimate([-1.0, -2.0, -0.5], [-1.0, -1.5, -0.75])
    array([0.        , 0.14872127, 0.02880078])
    >>> fastkl.kl_estimate([-1.0, -2.0, -0.5], [-1.0, -1.5, -0.75], kind="k1")
    array([ 0.  , -0.5 ,  0.25])
    """
    estimator(kind)
    try:
        rows = elements((logp, logq), ("logp", "logq"), dtype)
    except Contained as contained:
        call = partial(kl_estimate, kind=kind, out=out, n_threads=n_threads, invalid=invalid, dtype=dtype)
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    target, copy_to = target_for(rows, False, out)
    if kind == "k3":
        # Half of k3 is the divergence between Gaussians of the same mean whose variances are q(x) and p(x).
        mean, mean_type = np.zeros((), rows.types.result), rows.types.result.name
        (p, q), (p_type, q_type) = rows.operands, rows.types.operands
        reduce(
            _GAUSSIAN,
            (GAUSSIAN_OPS["kl"],),
            (mean, q, mean, p),
            tuple(TYPES[name] for name in (mean_type, q_type, mean_type, p_type)),
            TYPES[rows.types.row],
            None,
            1,
            (target,),
            threads_for(bound, target.size),
            scale=SCALES["logvar"],
        )
    _in_pieces({"k1": _k1, "k2": _k2, "k3": _k3_from_half}[kind], rows, target)
    return deliver(rows, target, copy_to, log_probability_fault, False, out, invalid)


def clipped_ratio_objective(
    logp_new: ArrayLike,
    logp_old: ArrayLike,
    advantage: ArrayLike,
    *,
    clip: float = 0.2,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Min(r A, clip(r, 1 − ε, 1 + ε) A) with r = exp(logp_new − logp_old): PPO's objective, to be maximised.

    Parameters
    ----------
    logp_new, logp_old : array_like
        The logarithms of the probability, or density, of each action under the policy that is being trained, and
        under the one that took it.
    advantage : array_like
        How much better than expected each action was, A; the three operands broadcast.
    clip : float
        How far from 1 a ratio may go to the objective's advantage, ε >= 0.
    out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.policy`. No kernel has a part in this one, and it takes
        one thread.

    Returns
    -------
    ndarray or scalar
        The objective of each action, of the broadcast shape.

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for a `clip` that is negative, infinite or NaN.

    Notes
    -----
    The ratio counts up to 1 + ε where A > 0 and from 1 − ε on where A < 0; elsewhere the objective does not depend on
    it. So for r = ∞ (-inf in `logp_old`, or an exponential that overflows) it is (1 + ε) A for A > 0, and -inf for
    A < 0; for r = 0 it is 0 and (1 − ε) A. For A = 0 it is 0, whatever r. An advantage that is infinite or NaN gives
    NaN, as do the logarithms that `invalid` is about. The ratio's product with A is right to a few of its last bits
    also where the ratio alone is beyond the range of floats; the very last may depend on the CPU, as that of NumPy's
    exponential does.

    References
    ----------
    J. Schulman, F. Wolski, P. Dhariwal, A. Radford and O. Klimov, "Proximal Policy Optimization Algorithms" (2017),
    equation 7.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.clipped_ratio_objective([-1.0, -1.0, -1.0], [-1.0, -2.0, -2.0], [1.0, 1.0, -1.0])
    array([ 1.        ,  1.2       , -2.71828183])
    """
    limit = clip_range(clip)
    try:
        rows = elements((logp_new, logp_old, advantage), ("logp_new", "logp_old", "advantage"), dtype)
    except Contained as contained:
        call = partial(clipped_ratio_objective, clip=limit, out=out, n_threads=n_threads, invalid=invalid, dtype=dtype)
        return in_containers(contained, call)
    thread_bound(n_threads)
    invalid_choice(invalid)
    target, copy_to = target_for(rows, False, out)
    _in_pieces(lambda new, old, a, y: _clipped(new, old, a, limit, y), rows, target)
    return deliver(rows, target, copy_to, log_probability_fault, False, out, invalid)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas, over pieces of the operands in float64; the last argument is the piece of the result


def _in_pieces(formula: Callable[..., None], rows: Rows, target: Array) -> None:
    """Have a formula fill the target, or change what is in it, with nothing of its size allocated."""
    names = rows.types.operands
    # Patterns of bfloat16 stay as they are until they are decoded.
    types = [x.dtype if name == "bfloat16" else np.float64 for x, name in zip(rows.operands, names, strict=True)]
    with np.errstate(all="ignore"):
        pieces: Any = np.nditer(
            [*rows.operands, target],
            ["external_loop", "buffered", "zerosize_ok"],
            [*(["readonly"] for _ in names), ["readwrite"]],
            [*types, np.float64],
            casting="same_kind",
            buffersize=_PIECE,
        )
        with pieces:
            for *numbers, result in pieces:
                values = (decoded(x, name) for x, name in zip(numbers, names, strict=True))
                formula(*(x.astype(np.float64, copy=False) for x in values), result)


def _k1(p: Array, q: Array, result: Array) -> None:
    np.subtract(p, q, out=result)
    result[(p == np.inf) | (q == np.inf)] = np.nan


def _k2(p: Array, q: Array, result: Array) -> None:
    _k1(p, q, result)
    result *= 0.5 * result  # halved first, as the square alone may overflow


def _k3_from_half(p: Array, q: Array, result: Array) -> None:
    """From what the kernel gives, to which a p of no width is no Gaussian."""
    result += result
    result[(p == -np.inf) & (q > -np.inf) & (q < np.inf)] = np.inf


def _clipped(new: Array, old: Array, a: Array, clip: float, result: Array) -> None:
    x = new - old
    # What the difference has lost (Knuth's TwoSum), of which an exponential makes much; beyond 2000 none is in range.
    back = x - new
    correction = 1 + np.where(np.abs(x) < 2000, (new - (x - back)) - (old + back), 0)
    ratio = np.exp(x) * correction
    counted = np.where(a > 0, np.minimum(ratio, 1 + clip), np.maximum(ratio, 1 - clip))
    np.multiply(counted, a, out=result)
    far = (np.abs(x) > 700) & (counted == ratio)
    if far.any():
        # By the fourth root of the ratio, four times: products go one way, so none leaves the range but the last.
        root, product = np.exp(x[far] / 4), a[far]
        for factor in (root, root, root, root * correction[far]):
            product = product * factor
        result[far] = product
    result[a == 0] = 0
    result[np.isnan(x) | (new == np.inf) | (old == np.inf) | ~np.isfinite(a)] = np.nan
