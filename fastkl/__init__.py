"""Divergences between distributions: right on every input, at the speed of memory."""

from fastkl._runtime import get_num_threads, set_simd_level, show_config, simd_level
from fastkl.discrete import (
    cross_entropy,
    entropy,
    hellinger_distance,
    jeffreys_divergence,
    js_distance,
    js_divergence,
    kl_divergence,
    renyi_divergence,
    score,
    total_variation,
    wasserstein_distance,
)
from fastkl.gaussian import gaussian_kl, gaussian_kl_full, gaussian_kl_grad, reparameterize
from fastkl.logits import (
    cross_entropy_from_logits,
    distillation_loss,
    entropy_from_logits,
    js_distance_from_logits,
    js_divergence_from_logits,
    kl_divergence_from_logits,
    kl_divergence_from_logits_grad,
    score_from_logits,
)
from fastkl.policy import clipped_ratio_objective, kl_estimate

__version__ = "0.1.0"

__all__ = [
    "clipped_ratio_objective",
    "cross_entropy",
    "cross_entropy_from_logits",
    "distillation_loss",
    "entropy",
    "entropy_from_logits",
    "gaussian_kl",
    "gaussian_kl_full",
    "gaussian_kl_grad",
    "get_num_threads",
    "hellinger_distance",
    "jeffreys_divergence",
    "js_distance",
    "js_distance_from_logits",
    "js_divergence",
    "js_divergence_from_logits",
    "kl_divergence",
    "kl_divergence_from_logits",
    "kl_divergence_from_logits_grad",
    "kl_estimate",
    "renyi_divergence",
    "reparameterize",
    "score",
    "score_from_logits",
    "set_simd_level",
    "show_config",
    "simd_level",
    "total_variation",
    "wasserstein_distance",
]
