"""``torch.distributions.kl_divergence``, for Normal, MultivariateNormal and Categorical by fastkl's kernels.

Independent distributions over these are included. What is not one of them (or a class that inherits from one), not on
the CPU, of mixed dtypes or with tangents of forward-mode differentiation goes to PyTorch, as do pairs for which
``register_kl`` has been called anew, and multivariate normal distributions whose divergence is to be differentiated or
traced. README.md beside this file says where results differ.
"""

# No annotations as strings: inspect.signature() is to give the original's.

from collections.abc import Callable

import torch
from torch import Tensor, distributions
from torch.autograd import forward_ad
from torch.distributions import Categorical, Distribution, Independent, MultivariateNormal, Normal
from torch.distributions import kl as originals

from fastkl import gaussian
from fastkl import torch as divergences
from fastkl._tensors import ROW_TYPES, seen_by_numpy

__all__ = ["kl_divergence"]


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The Kullback-Leibler divergence D(p‖q) of two distributions: ``torch.distributions.kl_divergence``.

    Parameters
    ----------
    p, q : Distribution
        Two of :mod:`torch.distributions`, whose batch shapes broadcast.

    Returns
    -------
    Tensor
        The divergence in nats, of the broadcast batch shape and of the parameters' dtype; differentiable with respect
        to all parameters.

    Raises
    ------
    NotImplementedError
        If PyTorch has no formula for the two.

    Notes
    -----
    It is never negative, 0 for equal distributions and right where they are nearly equal. A Categorical has
    probabilities of 0 where it was given them, or logits of -inf; in p they add nothing, and in q alone they make the
    divergence infinite. What is no distribution (as ``validate_args=False`` lets through) has NaN.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal
    >>> from fastkl.compat.torch_distributions import kl_divergence
    >>> kl_divergence(Normal(torch.tensor([0.0, 1.0]), 1.0), Normal(0.0, 2.0))
    tensor([0.3181, 0.4431])
    """
    ours = _OURS.get((type(p), type(q)))
    result = None if ours is None else ours(p, q)
    return distributions.kl_divergence(p, q) if result is None else result


def _normal(p: Normal, q: Normal, event_axes: int = 0) -> Tensor | None:
    """Of Normals, summed over the last axes; None where PyTorch is to be asked."""
    operands = _operands(Normal, (p.loc, p.scale, q.loc, q.scale), (p.loc.shape, q.loc.shape))
    if operands is None:
        return None
    if event_axes == 0:
        return divergences.gaussian_kl(*operands, scale="std", axis=None).to(p.loc.dtype)
    if p.loc.shape != q.loc.shape:
        operands = list(torch.broadcast_tensors(*operands))  # type: ignore[no-untyped-call]
    result = divergences.gaussian_kl(*operands, scale="std")
    return result.sum(tuple(range(1 - event_axes, 0))).to(p.loc.dtype) if event_axes > 1 else result.to(p.loc.dtype)


def _independent(p: Independent, q: Independent) -> Tensor | None:  # type: ignore[type-arg]
    n_axes = p.reinterpreted_batch_ndims
    if n_axes != q.reinterpreted_batch_ndims or not _is_pytorchs_own(Independent):
        return None
    if type(p.base_dist) is Normal and type(q.base_dist) is Normal:
        return _normal(p.base_dist, q.base_dist, n_axes)
    ours = _OURS.get((type(p.base_dist), type(q.base_dist)))
    result = None if ours is None else ours(p.base_dist, q.base_dist)
    return None if result is None else result.sum(tuple(range(-n_axes, 0))) if n_axes else result


def _categorical(p: Categorical, q: Categorical) -> Tensor | None:
    # Each has the other kind of parameters too, made from the first, with rounding errors and without zeros.
    both_logits = all(x._param is x.__dict__.get("logits") for x in (p, q))
    given = (p.logits, q.logits) if both_logits else (p.probs, q.probs)
    operands = _operands(Categorical, given, (given[0].shape[:-1], given[1].shape[:-1]))
    if operands is None or given[0].shape[-1] != given[1].shape[-1]:
        return None
    function = divergences.kl_divergence_from_logits if both_logits else divergences.kl_divergence
    return function(*operands).to(given[0].dtype)


def _multivariate_normal(p: MultivariateNormal, q: MultivariateNormal) -> Tensor | None:
    given = (p.loc, p.scale_tril, q.loc, q.scale_tril)
    operands = _operands(MultivariateNormal, given, (p.loc.shape[:-1], q.loc.shape[:-1]))
    if operands is None or p.event_shape != q.event_shape:
        return None
    seen = seen_by_numpy(operands)
    if seen is None:
        return None
    result = gaussian.gaussian_kl_full(*seen[0], cov="cholesky", diagonal="neither")
    return torch.from_numpy(result[...])


def _operands(
    kind: type[Distribution], given: tuple[Tensor, ...], batches: tuple[torch.Size, torch.Size]
) -> list[Tensor] | None:
    """Parameters that the kernels take; None for others, empty ones, and those of batches that do not broadcast."""
    dtype = given[0].dtype
    if dtype not in ROW_TYPES or forward_ad._current_level >= 0 or not _is_pytorchs_own(kind):
        return None
    for x in given:
        if (
            type(x) not in (Tensor, torch.nn.Parameter)
            or x.device.type != "cpu"
            or x.dtype is not dtype
            or x.numel() == 0
        ):
            return None
    if batches[0] != batches[1]:
        try:
            torch.broadcast_shapes(*batches)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return None
    return list(given)


def _is_pytorchs_own(kind: type[Distribution]) -> bool:
    """Whether PyTorch would take its own formula for two of a kind, and not one that has been registered since."""
    return originals._KL_REGISTRY.get((kind, kind)) is _FORMULAE[kind]


_FORMULAE: dict[type[Distribution], Callable[..., Tensor]] = {
    Categorical: originals._kl_categorical_categorical,
    Independent: originals._kl_independent_independent,
    MultivariateNormal: originals._kl_multivariatenormal_multivariatenormal,
    Normal: originals._kl_normal_normal,
}

_OURS: dict[tuple[type[Distribution], type[Distribution]], Callable[..., Tensor | None]] = {
    (Categorical, Categorical): _categorical,
    (Independent, Independent): _independent,
    (MultivariateNormal, MultivariateNormal): _multivariate_normal,
    (Normal, Normal): _normal,
}
