"""The gradients of the divergence between diagonal Gaussians, against finite differences in high precision."""

import mpmath
import numpy as np
import pytest
from oracles import bfloat16_bits

import fastkl
from fastkl import reference

SCALES = ("var", "std", "logvar")
BOTH = pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])
NAN, INF = np.nan, np.inf


def divergence(scale, m, s, mq, sq):
    if scale == "logvar":
        v, vq = mpmath.exp(s), mpmath.exp(sq)
    else:
        v, vq = (s, sq) if scale == "var" else (s**2, sq**2)
    return ((m - mq) ** 2 / vq + v / vq - 1 - mpmath.log(v / vq)) / 2


def finite_differences(scale, numbers):
    """Central differences of the divergence in each of four numbers, to some 40 digits."""
    with mpmath.workdps(200):
        numbers = [mpmath.mpf(float(x)) for x in numbers]
        slopes = []
        for i in range(4):
            step = mpmath.mpf(10) ** -60 * (1 if scale == "logvar" or i % 2 == 0 else numbers[i])
            above, below = ([*numbers[:i], numbers[i] + x, *numbers[i + 1 :]] for x in (step, -step))
            slopes.append((divergence(scale, *above) - divergence(scale, *below)) / (2 * step))
        return slopes


def numbers(rng, scale, n):
    """Means and scales that are ordinary, equal, nearly equal, and far apart."""
    m, mq = rng.standard_normal((2, n)) * 3
    s, sq = rng.uniform(0.1, 3, (2, n))
    m[1::5], s[2::5] = mq[1::5], sq[2::5]
    m[3::5], s[3::5] = mq[3::5] * (1 + 1e-12), np.nextafter(sq[3::5], 9)
    s[4::5], sq[4::5] = 10.0 ** rng.uniform(-60, 60, (2, len(s[4::5])))
    if scale == "logvar":
        s, sq = np.log(s), np.log(sq)
        s[2::5], s[3::5] = sq[2::5], np.nextafter(sq[3::5], 9)
    return m, s, mq, sq


@pytest.mark.parametrize("prior", [True, False], ids=["pair", "standard"])
@pytest.mark.parametrize("scale", SCALES)
def test_finite_differences(scale, prior, rng):
    operands = numbers(rng, scale, 60)
    if not prior:
        operands = (*operands[:2], np.zeros(60), np.full(60, 0.0 if scale == "logvar" else 1.0))
    gradients = fastkl.gaussian_kl_grad(*operands[: 4 if prior else 2], scale=scale)
    expected = reference.gaussian_kl_grad(*operands[: 4 if prior else 2], scale=scale)
    assert len(gradients) == len(expected) == (4 if prior else 2)
    for j in range(60):
        at = [x[j] for x in operands]
        exact = finite_differences(scale, at)
        # The slope in q's scale is minus a sum of the means' part, the slope without it, and may cancel.
        alone = finite_differences(scale, (0, at[1], 0, at[3]))[3]
        sizes = [abs(exact[0]), abs(exact[1]), abs(exact[2]), abs(exact[3] - alone) + abs(alone)]
        for gradient, plain, slope, size in zip(gradients, expected, exact, sizes, strict=False):
            assert abs(mpmath.mpf(float(gradient[j])) - slope) <= 8 * 2.0**-53 * size + 1e-59
            assert abs(plain[j] - gradient[j]) <= 1e-13 * size


@BOTH
@pytest.mark.parametrize("scale", SCALES)
def test_corner_cases(module, scale):
    one = 0.0 if scale == "logvar" else 1.0
    none = -INF if scale == "logvar" else 0.0
    bad = [(NAN, one, 0, one), (INF, one, 0, one), (0, NAN, 0, one), (0, INF, 0, one), (0, one, 0, none)]
    bad += [(0, one, NAN, one), (0, one, 0, INF)] + ([] if scale == "logvar" else [(0, -1, 0, one), (0, one, 0, -1)])
    for at in bad:
        assert np.isnan(module.gaussian_kl_grad(*at, scale=scale)).all()
        with pytest.raises(ValueError, match="^the row is invalid: "):
            module.gaussian_kl_grad(*at, scale=scale, invalid="raise")
    point = module.gaussian_kl_grad(2.0, none, 0.0, one, scale=scale)
    np.testing.assert_array_equal(point[:3], [2, -0.5 if scale == "logvar" else -INF, -2])
    np.testing.assert_array_equal(module.gaussian_kl_grad(1.5, one, 1.5, one, scale=scale), [0, 0, 0, 0])


@BOTH
def test_shapes_and_types(module, rng):
    m, s = rng.standard_normal((4, 1, 3)), rng.uniform(1, 2, (5, 1))
    gradients = module.gaussian_kl_grad(m, s, np.zeros(3), 2.0)
    assert [x.shape for x in gradients] == [(4, 5, 3)] * 4
    wide = np.broadcast_arrays(m, s, np.zeros(3), 2.0)
    for gradient, same in zip(gradients, module.gaussian_kl_grad(*wide), strict=True):
        np.testing.assert_array_equal(gradient, same)
    assert [x.shape for x in module.gaussian_kl_grad(np.zeros((0, 3)), 1.0)] == [(0, 3)] * 2
    for type_name in ("float32", "float16", "int8", ">f8"):
        numbers = [np.array(x).astype(type_name) for x in ([1, 2], [3, 1])]
        expected = module.gaussian_kl_grad(*(x.astype(np.float64) for x in numbers))
        for gradient, exact in zip(module.gaussian_kl_grad(*numbers), expected, strict=True):
            assert gradient.dtype == (np.float32 if type_name.startswith("float") else np.float64)
            np.testing.assert_array_equal(gradient, exact.astype(gradient.dtype))
    bits = [bfloat16_bits(np.array(x)) for x in ([1.0, 2.0], [3.0, 1.0])]
    for gradient, exact in zip(module.gaussian_kl_grad(*bits, dtype="bfloat16"), expected, strict=True):
        np.testing.assert_array_equal(gradient, exact.astype(np.float32))


@BOTH
def test_arguments(module):
    with pytest.raises(ValueError, match="^scale must be 'var', 'std' or 'logvar', got 'variance'$"):
        module.gaussian_kl_grad([1.0], [1.0], scale="variance")
    with pytest.raises(ValueError, match="shapes do not broadcast: mean_p has shape"):
        module.gaussian_kl_grad(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="^mean_q without scale_q"):
        module.gaussian_kl_grad([1.0], [1.0], [1.0])
    with pytest.raises(TypeError, match="mean_p has dtype complex128"):
        module.gaussian_kl_grad([1j], [1.0])


@pytest.mark.parametrize("scale", SCALES)
def test_torch_autograd(scale, rng):
    torch = pytest.importorskip("torch")
    operands = [torch.from_numpy(x).requires_grad_() for x in numbers(rng, scale, 40)]
    with torch.no_grad():  # autograd's own formula loses what is far apart
        for x in operands[1::2]:
            x[4::5] = 1
    deviation = {"var": torch.sqrt, "std": torch.abs, "logvar": lambda x: torch.exp(x / 2)}[scale]
    normals = [torch.distributions.Normal(m, deviation(s)) for m, s in (operands[:2], operands[2:])]
    torch.distributions.kl_divergence(*normals).sum().backward()
    gradients = fastkl.gaussian_kl_grad(*(x.detach().numpy() for x in operands), scale=scale)
    for gradient, operand in zip(gradients, operands, strict=True):
        np.testing.assert_allclose(gradient, operand.grad.numpy(), rtol=1e-9, atol=1e-12)
