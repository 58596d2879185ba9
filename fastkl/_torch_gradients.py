"""The gradients of :mod:`fastkl.torch` in PyTorch's own operations, for those that are to be differentiated in turn.

The kernels write gradients that autograd knows no more of. Where it asks for the gradient's own graph — second
derivatives, ``create_graph=True``, everything that ``torch.func`` does — the same formulae stand here, at PyTorch's
speed and with PyTorch's rounding errors. What each function returns broadcasts against the operands, in their order,
and an operand that is not valid makes NaN of its row's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def discrete_gradients(
    p: Tensor, q: Tensor, weight: float | None, normalize: bool, unit: float, axis: int
) -> tuple[Tensor, Tensor]:
    """Those of D(p‖q), or of a Jensen-Shannon divergence with its ``weight``: see :mod:`fastkl._gradients`."""
    p, q = _floats(p, q)
    valid = ((p >= 0) & (q >= 0) & (p < math.inf) & (q < math.inf)).all(axis, keepdim=True)
    sum_p = p.sum(axis, keepdim=True) if normalize else p.new_ones(())
    sum_q = q.sum(axis, keepdim=True) if normalize else q.new_ones(())
    valid &= (sum_p > 0) & (sum_q > 0)
    p, q = p / sum_p, q / sum_q
    if weight is None:
        to_p, to_q = _kl_slopes(p, q, normalize, axis)
    else:
        rest = 1.0 - weight
        mixture = weight * p + rest * q
        to_p = _js_slopes(p, q, mixture, weight, normalize, axis)
        to_q = _js_slopes(q, p, mixture, rest, normalize, axis)
    return torch.where(valid, to_p / (sum_p * unit), math.nan), torch.where(valid, to_q / (sum_q * unit), math.nan)


def _kl_slopes(p: Tensor, q: Tensor, normalize: bool, axis: int) -> tuple[Tensor, Tensor]:
    full = p > 0
    ratio = torch.where(full, p, 1.0) / torch.where(full, q, 1.0)
    if not normalize:
        return torch.where(full, ratio.log() + 1.0, 0.0), -torch.where(full, ratio, 0.0)
    logs = torch.where(full, ratio.log(), -1.0)
    divergence = (p * logs).sum(axis, keepdim=True)
    return logs - torch.where(divergence < math.inf, divergence, math.nan), 1.0 - torch.where(full, ratio, 0.0)


def _js_slopes(x: Tensor, other: Tensor, mixture: Tensor, weight: float, normalize: bool, axis: int) -> Tensor:
    if weight in (0.0, 1.0):
        return 0.0 * mixture
    full = x > 0
    ratio = torch.where(full, x, 1.0) / torch.where(full, mixture, 1.0)
    slopes = torch.where(full, weight * ratio.log(), torch.where(other > 0, -weight, 0.0).to(x.dtype))
    return slopes - (x * slopes).sum(axis, keepdim=True) if normalize else slopes


def logits_gradients(
    p_logits: Tensor, q_logits: Tensor, temperature: float, unit: float, axis: int
) -> Sequence[Tensor]:
    """Those of D(p‖q) with respect to logits."""
    logs = [torch.log_softmax(x / temperature, axis) for x in _floats(p_logits, q_logits)]
    p, q = (x.exp() for x in logs)
    apart = torch.where(p > 0, logs[0], 0.0) - torch.where(p > 0, logs[1], 0.0)
    divergence = (p * apart).sum(axis, keepdim=True)
    return p * (apart - divergence) / (temperature * unit), (q - p) / (temperature * unit)


def gaussian_gradients(operands: Sequence[Tensor], scale: str) -> tuple[Tensor, ...]:
    """Those of the divergence of diagonal Gaussians with respect to means and scales."""
    m, s, *prior = _floats(*operands)
    mq, sq = prior or (torch.zeros_like(m), torch.full_like(m, 0.0 if scale == "logvar" else 1.0))
    apart = m - mq
    if scale == "logvar":
        excess = torch.expm1(s - sq)
        to_mean = apart * torch.exp(-sq)
        to_p, to_q = 0.5 * excess, -0.5 * (apart * to_mean + excess)
        valid = (s < math.inf) & (sq > -math.inf) & (sq < math.inf)
    else:
        relative = (s - sq) / sq
        if scale == "var":
            to_mean = apart / sq
            to_p, to_q = 0.5 * relative / s, -0.5 * (to_mean**2 + relative / sq)
        else:
            excess = relative * (s + sq) / sq
            to_mean = apart / sq / sq
            to_p, to_q = excess / s, -((apart / sq) ** 2 + excess) / sq
        valid = (s >= 0) & (s < math.inf) & (sq > 0) & (sq < math.inf)
    valid = valid & (m.abs() < math.inf) & (mq.abs() < math.inf)
    return tuple(torch.where(valid, x, math.nan) for x in (to_mean, to_p, -to_mean, to_q))


def _floats(*operands: Tensor) -> list[Tensor]:
    """Operands with the same number of axes, in float32 or float64."""
    ndim = max(x.dim() for x in operands)
    floats = (x if x.dtype in (torch.float32, torch.float64) else x.to(_float_for(x.dtype)) for x in operands)
    return [x.reshape((1,) * (ndim - x.dim()) + tuple(x.shape)) for x in floats]


def _float_for(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else torch.float64
