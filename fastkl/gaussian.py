"""Divergences between Gaussian distributions, in bulk, and samples of them.

A *row* is one Gaussian, its components along the reduced axis; all other axes are the batch. It is given by its means
and, if the components are independent, its *scales*: variances, standard deviations, or logarithms of variances, as
networks put out. :func:`gaussian_kl_full` takes covariance matrices.

Options common to all functions
-------------------------------
scale : {"var", "std", "logvar"}
    What the scales are.
axis : int or None
    The axis that holds the components, the last by default. None reduces nothing: every number is a univariate
    Gaussian of its own.
invalid : {"nan", "raise"}
    As in :mod:`fastkl.discrete`, about a row that is no Gaussian: NaN, an infinite mean, a negative or infinite
    variance, or, in q, a variance of 0.
keepdims, out, n_threads, dtype
    As in :mod:`fastkl.discrete`.

Operands broadcast as in NumPy, without copies; along the reduced axis scalars alone are stretched. The types of
operands and results, and the errors, are those of :mod:`fastkl.discrete`; Python numbers take the others' type.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastkl._containers import in_containers
from fastkl._kernels._batch import FAMILIES, FULL_SCALES, GAUSSIAN_OPS, SCALES, TYPES, reduce
from fastkl._runtime import threads_for
from fastkl._validation import (
    Contained,
    covariance_kind,
    decoded,
    deliver,
    elements,
    full_gaussian_fault,
    full_gaussian_rows,
    gaussian_fault,
    gaussian_operands,
    gaussian_rows,
    gaussian_scale,
    invalid_choice,
    target_for,
    thread_bound,
)

if TYPE_CHECKING:
    from typing import SupportsIndex

    from numpy.typing import ArrayLike

    from fastkl._validation import Array, Result

__all__ = ["gaussian_kl", "gaussian_kl_full", "gaussian_kl_grad", "reparameterize"]

_GAUSSIAN = FAMILIES["gaussian"]
_GAUSSIAN_FULL = FAMILIES["gaussian_full"]


def gaussian_kl(
    mean_p: ArrayLike,
    scale_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    scale_q: ArrayLike | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    axis: SupportsIndex | None = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Kullback-Leibler divergence D(p‖q) = ½ Σ [(μp − μq)²/vq + vp/vq − 1 − log(vp/vq)] of diagonal Gaussians.

    With q left out it is that from the standard normal distribution, ½ Σ (μ² + v − 1 − log v): with
    ``scale="logvar"`` the regularising term of a variational autoencoder.

    Parameters
    ----------
    mean_p, scale_p : array_like
        The means and the scales of p, of shape (..., K).
    mean_q, scale_q : array_like, optional
        Those of q; N(0, I) if both are left out.
    scale, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.gaussian`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats; shape (...), or with ``axis=None`` that of the operands.

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError if one of mean_q and scale_q is given without the other.

    Notes
    -----
    The result is never negative, and 0 for equal rows. A variance of 0 in p alone makes it infinite; in q it is NaN,
    as there is no density. The result is right to a few of its last bits however close p and q are, for every term is
    computed as a quantity >= 0: with φ(a, b) = a log(a/b) − a + b, the second part of one is φ(vq, vp)/vq.

    References
    ----------
    J. Duchi, "Derivations for Linear Algebra and Optimization", section 9; D. P. Kingma and M. Welling, "Auto-Encoding
    Variational Bayes" (2014), appendix B.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.gaussian_kl([[0.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [2.0, 0.5]])
    array([0.5, 0.5])
    >>> fastkl.gaussian_kl([0.0, 1.0], 1.0, 0.0, [1.0, 4.0], axis=None)
    array([0.        , 0.44314718])
    """
    gaussian_scale(scale)
    operands, names = gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    try:
        rows = gaussian_rows(operands, names, axis, dtype)
    except Contained as contained:
        call = partial(
            gaussian_kl,
            scale=scale,
            axis=axis,
            keepdims=keepdims,
            out=out,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    target, copy_to = target_for(rows, keepdims, out)
    reduce(
        _GAUSSIAN,
        (GAUSSIAN_OPS["kl"],),
        rows.operands,
        tuple(TYPES[name] for name in rows.types.operands),
        TYPES[rows.types.row],
        rows.axis,
        rows.length,
        (target,),
        threads_for(bound, target.size * rows.length),
        scale=SCALES[scale],
    )
    return deliver(rows, target, copy_to, gaussian_fault(scale), keepdims, out, invalid)


def gaussian_kl_full(
    mean_p: ArrayLike,
    cov_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    cov_q: ArrayLike | None = None,
    *,
    cov: Literal["covariance", "cholesky"] = "covariance",
    diagonal: Literal["neither", "p", "q", "both"] | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Kullback-Leibler divergence of Gaussians with full covariances.

    D(p‖q) = ½ [(μp − μq)ᵀ Σq⁻¹ (μp − μq) + tr(Σq⁻¹ Σp) − d − log det(Σq⁻¹ Σp)], from factors, without cancellation.

    Parameters
    ----------
    mean_p : array_like
        The means of p, of shape (..., d), or one number for all components.
    cov_p : array_like
        The covariances of p, of shape (..., d, d); or a diagonal: variances of shape (..., d), or one for all
        components.
    mean_q, cov_q : array_like, optional
        Those of q; N(0, I) if both are left out.
    cov : {"covariance", "cholesky"}
        What the matrices are: covariances, or their lower Cholesky factors (a diagonal has standard deviations then).
    diagonal : {"neither", "p", "q", "both"}, optional
        Of which distribution the covariance is given by its diagonal. By default its shape tells: a matrix if its last
        two axes are both d long, otherwise a diagonal. ValueError where that is ambiguous, as for means and variances
        that are both of shape (d, d).
    out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.gaussian`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair, in nats; its shape is that of the batch axes, broadcast.

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError if one of mean_q and cov_q is given without the other.

    Notes
    -----
    A covariance is read from its lower triangle; the result is NaN if an element of the upper one differs from its
    mirror image by more than the root of its type's precision (1.5e-8 for float64) times the two standard deviations.
    Above the diagonal of a Cholesky factor, all must be 0. NaN or an infinity anywhere, a covariance that is not
    positive definite and a negative diagonal give NaN, except that a p without width in some direction makes the
    divergence infinite: one with a 0 on the diagonal of its factor, such as a variance of 0. In general roundings
    decide whether a covariance with dependent components is seen as such.

    The result is never negative, and 0 for equal pairs. Its relative error stays below 1e-14 times the larger of the
    condition numbers, however close p and q are: with L their factors, the divergence is
    ½ Σ_j (r_j² − 1 − log r_j²) + ½ Σ_{i>j} N_ij² + ½ yᵀy with N = Lq⁻¹ (Lp − Lq), r_j = 1 + N_jj and
    y = Lq⁻¹ (μp − μq), a sum of terms >= 0, and where it is small Lp − Lq is computed from Σp − Σq.

    References
    ----------
    J. Duchi, "Derivations for Linear Algebra and Optimization", section 9.

    Examples
    --------
    >>> import fastkl
    >>> covariance = [[2.0, 0.5], [0.5, 1.0]]
    >>> fastkl.gaussian_kl_full([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], covariance)  # from N(0, I)
    array([0.22019211, 0.72019211, 2.22019211])
    >>> float(fastkl.gaussian_kl_full([0.0, 0.0], [2.0, 1.0], 0.0, covariance))  # variances next to a covariance
    0.07609144654488152
    """
    covariance_kind(cov)
    operands, names = gaussian_operands(mean_p, cov_p, mean_q, cov_q, "cov")
    try:
        rows = full_gaussian_rows(operands, names, diagonal, dtype)
    except Contained as contained:
        call = partial(
            gaussian_kl_full,
            cov=cov,
            diagonal=diagonal,
            out=out,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    target, copy_to = target_for(rows, False, out)
    reduce(
        _GAUSSIAN_FULL,
        (GAUSSIAN_OPS["kl"],),
        tuple(x[..., 0, :] if whole else x for x, whole in zip(rows.operands, rows.whole, strict=True)),
        tuple(TYPES[name] for name in rows.types.operands),
        TYPES["float64"],
        rows.axis,
        rows.length,
        (target,),
        threads_for(bound, target.size * rows.length**2),
        scale=FULL_SCALES[cov],
        matrices=tuple(
            (x.strides[-2] if whole else None, asymmetry)
            for x, whole, asymmetry in zip(rows.operands, rows.whole, rows.asymmetry, strict=True)
        ),
    )
    return deliver(rows, target, copy_to, full_gaussian_fault(rows, cov), False, out, invalid)


def gaussian_kl_grad(
    mean_p: ArrayLike,
    scale_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    scale_q: ArrayLike | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> tuple[Array, ...]:
    """The gradients of :func:`gaussian_kl` with respect to the means and the scales.

    Parameters
    ----------
    mean_p, scale_p : array_like
        The means and the scales of p.
    mean_q, scale_q : array_like, optional
        Those of q; N(0, I) if both are left out.
    scale, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.gaussian`.

    Returns
    -------
    tuple of ndarray
        A gradient for each of the two or four operands given, in their order. They have the dtype of the divergence and
        the shape to which the operands broadcast: a number that stands against several has a gradient for each, to be
        added up.

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    The divergence is a sum over components, so that each number's gradient depends on its own component alone, along
    whatever axis they lie: (μp − μq)/vq with respect to μp, ½ (1/vq − 1/vp) to vp, its opposite less
    ½ ((μp − μq)/vq)² + ½ (vp − vq)²/(vp vq²) to vq. They are right to some of their last bits where p and q are nearly
    equal. What is no Gaussian has NaN in all gradients, and a variance of 0 in p has the limit.

    References
    ----------
    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), appendix B.

    Examples
    --------
    >>> import fastkl
    >>> grad_mean, grad_logvar = fastkl.gaussian_kl_grad([0.5, -1.0], [0.0, 1.0], scale="logvar")
    >>> grad_mean
    array([ 0.5, -1. ])
    >>> grad_logvar
    array([0.        , 0.85914091])
    """
    gaussian_scale(scale)
    operands, names = gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    try:
        rows = elements(operands, names, dtype)
    except Contained as contained:
        return in_containers(contained, partial(gaussian_kl_grad, scale=scale, invalid=invalid, dtype=dtype))
    invalid_choice(invalid)
    gradients = tuple(np.empty(rows.batch_shape, rows.types.result) for _ in operands)
    n = len(operands)
    pieces = np.nditer(
        (*rows.operands, *gradients),
        ["external_loop", "buffered", "zerosize_ok"],
        [["readonly"]] * n + [["writeonly"]] * n,
        [np.uint16 if name == "bfloat16" else np.float64 for name in rows.types.operands] + [np.float64] * n,
        casting="same_kind",
    )
    with pieces, np.errstate(all="ignore"):
        for piece in pieces:
            numbers = (decoded(x, name) for x, name in zip(piece[:n], rows.types.operands, strict=True))
            m, s, *prior = (x.astype(np.float64, copy=False) for x in numbers)
            slopes = _slopes(scale, m, s, *(prior or (0.0, 0.0 if scale == "logvar" else 1.0)))
            for to, slope in zip(piece[n:], slopes, strict=False):
                to[...] = slope
    deliver(rows, gradients[0], None, gaussian_fault(scale), False, None, invalid)
    return gradients


def _slopes(scale: str, m: Array, s: Array, mq: Array | float, sq: Array | float) -> tuple[Array, ...]:
    """The four gradients of some components, from the differences of the numbers given."""
    apart = m - mq
    if scale == "logvar":
        root = np.exp(-0.5 * np.asarray(sq))
        distance = np.where(apart == 0, 0.0, apart * root)
        to_mean = np.where(distance == 0, 0.0, distance * root)
        x = s - sq
        back = x - s
        low = (s - (x - back)) - (sq + back)  # what the subtraction has lost, of which an exponential makes much
        excess = np.expm1(x) + np.where(np.isfinite(x), np.exp(x) * low, 0.0)
        to_p, to_q = 0.5 * excess, -0.5 * (distance**2 + excess)
        no_width = -np.inf
    else:
        change, larger, smaller = s - sq, np.maximum(s, sq), np.minimum(s, sq)
        to_p = change / larger / smaller
        if scale == "var":
            to_mean = apart / sq
            to_p, to_q = 0.5 * to_p, -0.5 * (to_mean**2 + change / sq / sq)
        else:
            distance, sum_over = apart / sq, (s + sq) / sq
            to_mean = distance / sq
            to_p, to_q = to_p * sum_over, -(distance**2 + change / sq * sum_over) / sq
        no_width = 0.0
    valid = np.isfinite(m) & np.isfinite(mq) & (s >= no_width) & (s < np.inf) & (sq > no_width) & (sq < np.inf)
    to_mean, to_p, to_q = (np.where(valid, x, np.nan) for x in (to_mean, to_p, to_q))
    return to_mean, to_p, -to_mean, to_q


def reparameterize(
    mean: ArrayLike,
    scale: ArrayLike,
    *,
    scale_kind: Literal["var", "std", "logvar"] = "logvar",
    rng: np.random.Generator | int | None = None,
) -> Result:
    """A sample μ + σ ε of each Gaussian, with ε from N(0, 1): a smooth function of its parameters.

    Parameters
    ----------
    mean, scale : array_like
        The means and the scales, which broadcast.
    scale_kind : {"var", "std", "logvar"}
        What the scales are: variances, standard deviations, or logarithms of variances.
    rng : numpy.random.Generator, int or None
        The source of ε, or the seed of a new one; None is unpredictable.

    Returns
    -------
    ndarray or scalar
        The samples, in the broadcast shape; float32 where NumPy's promotion of the operands gives float32 or less, and
        float64 otherwise. The same seed, shape and dtype give the same samples.

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    NaN, an infinite mean, a negative variance or standard deviation, and one that is or becomes infinite, give NaN; a
    variance of 0 gives the mean.

    References
    ----------
    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.reparameterize([1.0, 2.0], [0.0, 0.0], scale_kind="var", rng=0)
    array([1., 2.])
    """
    gaussian_scale(scale_kind, "scale_kind")
    rows = gaussian_rows((mean, scale), ("mean", "scale"), None, None)
    generator = np.random.default_rng(rng)
    dtype = rows.types.result
    means, scales = (decoded(x, name) for x, name in zip(rows.operands, rows.types.operands, strict=True))
    sample = np.empty(rows.batch_shape, dtype)
    generator.standard_normal(dtype=dtype, out=sample)
    with np.errstate(all="ignore"):
        deviation = scales.astype(dtype)
        if scale_kind == "logvar":
            deviation *= 0.5
            np.exp(deviation, out=deviation)
        elif scale_kind == "var":
            np.sqrt(deviation, out=deviation)
        deviation[~((deviation >= 0) & (deviation < np.inf))] = np.nan
        sample *= deviation
        sample += np.where(np.isfinite(means), means, np.nan)
    return sample if rows.batch_shape else sample[()]
