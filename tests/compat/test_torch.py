"""fastkl.torch: the values of the NumPy functions, gradients against exact ones, and what PyTorch asks of an operator."""

import doctest
import os
import pathlib
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from dropins import outcome

import fastkl

torch = pytest.importorskip("torch")
ft = pytest.importorskip("fastkl.torch")

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "bool": torch.bool,
}

# Options of each function, and how many operands it takes.
CALLS = [
    ("kl_divergence", 2, {}),
    ("kl_divergence", 2, {"normalize": False, "base": 2, "keepdims": True}),
    ("kl_divergence", 2, {"axis": 0, "n_threads": 1}),
    ("js_divergence", 2, {}),
    ("js_divergence", 2, {"weight": 0.25, "normalize": False, "base": 3}),
    ("js_divergence", 2, {"weight": 0.9, "axis": -2, "keepdims": True}),
    ("kl_divergence_from_logits", 2, {}),
    ("kl_divergence_from_logits", 2, {"temperature": 2.5, "base": 2, "axis": 0, "keepdims": True}),
    ("distillation_loss", 2, {}),
    ("distillation_loss", 2, {"temperature": 3.0, "reduction": "none", "axis": 0}),
    ("distillation_loss", 2, {"temperature": 0.5, "reduction": "sum"}),
    ("gaussian_kl", 2, {}),
    ("gaussian_kl", 2, {"scale": "logvar", "axis": None}),
    ("gaussian_kl", 4, {"scale": "std", "axis": 0, "keepdims": True}),
    ("gaussian_kl", 4, {"scale": "logvar", "axis": 1}),
    ("gaussian_kl", 4, {"axis": None}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, _, options in CALLS]


def tensors(rng, n, shape=(4, 6), dtype=torch.float64):
    """Numbers that are good for everything: between 0.25 and 1.25 there is no slope that finite differences miss."""
    return [torch.from_numpy(rng.random(shape) + 0.25).to(dtype) for _ in range(n)]


def as_numpy(x):
    """The numbers of a tensor for NumPy; a tensor of bfloat16 as float32, in which they are the same."""
    return (x.float() if x.dtype is torch.bfloat16 else x).detach().numpy()


class TestValues:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_are_those_of_numpy(self, name, n, options, dtype, rng):
        operands = tensors(rng, n, dtype=DTYPES[dtype])
        found = getattr(ft, name)(*operands, **options)
        expected = np.asarray(getattr(fastkl, name)(*map(as_numpy, operands), **options))
        assert type(found) is torch.Tensor
        assert found.numpy().dtype == expected.dtype
        if dtype == "bfloat16":  # the same numbers, but computed from another type's rows
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(found.numpy(), expected, strict=True)

    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_operator_has_the_same_bits(self, name, n, options, rng):
        operands = tensors(rng, n, dtype=torch.bfloat16)
        direct = getattr(ft, name)(*operands, **options)
        recorded = getattr(ft, name)(*(x.requires_grad_() for x in operands), **options)
        assert recorded.requires_grad
        torch.testing.assert_close(recorded.detach(), direct, rtol=0, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(getattr(ft, name)(*operands, **options), direct, rtol=0, atol=0)
        with torch.inference_mode():
            torch.testing.assert_close(getattr(ft, name)(*operands, **options), direct, rtol=0, atol=0)

    @pytest.mark.parametrize("dtypes", [("float16", "bfloat16"), ("float32", "int32"), ("bfloat16", "float64")])
    def test_mixed_types(self, dtypes, rng):
        p, q = (tensors(rng, 1, dtype=DTYPES[dtype])[0] for dtype in dtypes)
        expected = torch.float32 if dtypes == ("float16", "bfloat16") else torch.float64
        found = ft.kl_divergence(p, q)
        assert found.dtype is expected
        torch.testing.assert_close(found, ft.kl_divergence(p.double(), q.double()).to(expected))

    def test_uint16_beside_bfloat16_is_numbers(self):
        counts = torch.tensor([[1, 3], [0x3F80, 1]], dtype=torch.uint16)  # 0x3F80 is 1.0 in bfloat16
        q = torch.tensor([[1.0, 1.0], [1.0, 3.0]], dtype=torch.bfloat16)
        expected = ft.kl_divergence(counts.to(torch.int64), q.double())
        torch.testing.assert_close(ft.kl_divergence(counts, q), expected)
        torch.testing.assert_close(ft.kl_divergence(counts, q.requires_grad_()).detach(), expected)

    def test_layouts(self, rng):
        wide = torch.from_numpy(rng.random((6, 8)))
        for view in (wide[:, ::2], wide.T[1:5, :4], wide[:1, :4].expand(6, 4), wide[:0, :4], wide[2, :4]):
            q = torch.ones(4, dtype=torch.float64)
            np.testing.assert_array_equal(
                ft.kl_divergence(view, q).numpy(), fastkl.kl_divergence(view.numpy(), q.numpy())
            )
            halves = view.bfloat16()
            torch.testing.assert_close(ft.kl_divergence(halves, q.float()), ft.kl_divergence(halves.float(), q.float()))

    def test_negative_bit(self):
        p = torch.tensor([1 - 2j, 3 - 1j]).conj().imag
        assert p.is_neg()
        torch.testing.assert_close(ft.kl_divergence(p, torch.ones(2)), ft.kl_divergence(p.clone(), torch.ones(2)))

    @pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
    def test_one_pair_of_rows(self, name, rng):
        """It takes a shorter way if it is plain, and the bits are the same by all ways."""
        function, options = getattr(ft, name), {} if name == "kl_divergence" else {"weight": 0.3}
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32):
            for length in (1, 5, 64, 2000):
                p, q = (torch.from_numpy(rng.integers(0, 9, length)).to(dtype) for _ in range(2))
                for more in ({}, {"normalize": False}, {"base": 2}):
                    expected = function(p[None], q[None], **options, **more)[0]
                    torch.testing.assert_close(
                        function(p, q, **options, **more), expected, rtol=0, atol=0, equal_nan=True
                    )
        p, q = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
        expected = function(p, q, **options)
        negative = torch._neg_view(-p)
        assert negative.is_neg() and negative.is_contiguous()
        for x in (negative, p.repeat_interleave(2)[::2], p.requires_grad_()):
            torch.testing.assert_close(function(x, q, **options).detach(), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="axis"):
            function(p[:0], q[:0])
        with pytest.raises(TypeError, match="axis"):
            function(p, q, axis=-1.0)
        with pytest.raises(TypeError, match="n_threads must be None or an int, got ndarray"):
            function(q, q, n_threads=np.array([1, 2]))
        torch.testing.assert_close(function(p, q, n_threads=10**30), function(p, q))
        nothing = torch._efficientzerotensor((6,), dtype=torch.float64)
        assert function(nothing, q).isnan() and function(q, nothing).isnan()

    def test_parameters_and_subclasses(self, rng):
        p, q = tensors(rng, 2)
        expected = ft.kl_divergence(p, q)
        frozen = torch.nn.Parameter(p, requires_grad=False)
        torch.testing.assert_close(ft.kl_divergence(frozen, q), expected)
        assert ft.kl_divergence(torch.nn.Parameter(p), q).requires_grad

    def test_numbers_among_gaussians(self, rng):
        (mean,) = tensors(rng, 1, dtype=torch.float32)
        for operands in ((mean, 1.0), (mean, 1, 0.5, 2), (0.0, mean, mean, 1.0)):
            expected = fastkl.gaussian_kl(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in operands))
            np.testing.assert_array_equal(ft.gaussian_kl(*operands).numpy(), expected, strict=True)
        assert ft.gaussian_kl(mean.requires_grad_(), 1.0, 0.5, 2.0).dtype is torch.float32
        assert ft.gaussian_kl(1.0, 2.0, axis=None).dtype is torch.float64


class TestMemory:
    """Nothing is copied on the way to the kernels and back."""

    @pytest.mark.parametrize("needs_gradient", [False, True])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
    def test_is_shared(self, dtype, needs_gradient, rng, monkeypatch):
        given, results = [], []
        function = ft.discrete.kl_divergence

        def spy(p, q, **options):
            given.extend((p, q))
            results.append(function(p, q, **options))
            return results[-1]

        monkeypatch.setattr(ft.discrete, "kl_divergence", spy)
        operands = [x.requires_grad_(needs_gradient) for x in tensors(rng, 2, dtype=DTYPES[dtype])]
        found = ft.kl_divergence(*operands)
        assert [x.ctypes.data for x in given] == [x.data_ptr() for x in operands]
        assert found.data_ptr() == results[0].ctypes.data

    def test_result_is_ones_own(self, rng):
        p, q = tensors(rng, 2)
        found = ft.kl_divergence(p, q)
        found += 1.0
        torch.testing.assert_close(found, ft.kl_divergence(p, q) + 1.0)


BAD_CALLS = [
    ("kl_divergence", [(2, 3), (2, 4)], {}),
    ("kl_divergence", [(2, 3), (3, 3)], {}),
    ("kl_divergence", [(2, 0), (2, 0)], {}),
    ("kl_divergence", [(), ()], {}),
    ("kl_divergence", [(2, 3), (2, 3)], {"axis": 2}),
    ("kl_divergence", [(2, 3), (2, 3)], {"axis": "last"}),
    ("kl_divergence", [(2, 3), (2, 3)], {"base": 1}),
    ("kl_divergence", [(2, 3), (2, 3)], {"base": "e"}),
    ("kl_divergence", [(2, 3), (2, 3)], {"n_threads": 0}),
    ("kl_divergence", [(2, 3), (2, 3)], {"n_threads": 1.5}),
    ("kl_divergence", [(2, 3), (2, 3)], {"invalid": "ignore"}),
    ("js_divergence", [(2, 3), (2, 3)], {"weight": 2.0}),
    ("js_divergence", [(2, 3), (2, 3)], {"weight": None}),
    ("kl_divergence_from_logits", [(2, 3), (2, 3)], {"temperature": 0.0}),
    ("kl_divergence_from_logits", [(2, 3), (2, 4)], {}),
    ("distillation_loss", [(2, 3), (2, 3)], {"reduction": "mean"}),
    ("distillation_loss", [(2, 3), (2, 3)], {"temperature": 1e200}),
    ("gaussian_kl", [(2, 3), (2, 3)], {"scale": "variance"}),
    ("gaussian_kl", [(2, 3), (2, 3), (2, 3)], {}),
    ("gaussian_kl", [(), ()], {}),
    ("gaussian_kl", [(2, 3), (2, 2)], {"axis": None}),
]


class TestErrors:
    @pytest.mark.parametrize("needs_gradient", [False, True])
    @pytest.mark.parametrize(("name", "shapes", "options"), BAD_CALLS)
    def test_are_those_of_numpy(self, name, shapes, options, needs_gradient):
        operands = [torch.ones(shape, requires_grad=needs_gradient) for shape in shapes]
        theirs = outcome(getattr(fastkl, name), *(x.detach().numpy() for x in operands), **options)
        ours = outcome(getattr(ft, name), *operands, **options)
        assert theirs.error is not None
        assert (type(ours.error), str(ours.error)) == (type(theirs.error), str(theirs.error))

    @pytest.mark.parametrize("needs_gradient", [False, True])
    def test_invalid_rows(self, needs_gradient):
        p = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], requires_grad=needs_gradient)
        with pytest.raises(ValueError, match=r"1 of 2 rows are invalid, the first at index 1: negative value in p"):
            ft.kl_divergence(p, torch.ones(2), invalid="raise")

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    @pytest.mark.parametrize("name", ["kl_divergence", "js_divergence", "kl_divergence_from_logits", "gaussian_kl"])
    def test_what_is_no_plain_tensor(self, name):
        function, x = getattr(ft, name), torch.ones(2, 3)
        with pytest.raises(TypeError, match=r"has the layout torch\._mkldnn; pass .*\.to_dense\(\)"):
            function(x, x.to_mkldnn())
        for row, problem in (
            (x[0].to("meta"), "device meta"),
            (x[0].to_sparse(), "sparse"),
            (x[0].to_mkldnn(), "mkldnn"),
        ):
            with pytest.raises(TypeError, match=problem):
                function(row, row)
        with pytest.raises(TypeError, match=rf"must be a torch.Tensor, got ndarray.* or call fastkl\.{name} "):
            function(x, np.ones((2, 3)))
        with pytest.raises(TypeError, match=r"is on the device meta; pass .*\.cpu\(\)"):
            function(x, x.to("meta"))
        with pytest.raises(TypeError, match=r"has the layout torch\.sparse_coo; pass .*\.to_dense\(\)"):
            function(x, x.to_sparse())
        nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
        with pytest.raises(TypeError, match="is a nested tensor"):
            function(nested, x)
        with pytest.raises(TypeError, match="must be a torch.Tensor, got list"):
            function([1.0], x)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
    def test_dtypes(self, dtype):
        x = torch.ones(2, 3)
        for needs_gradient in (False, True):
            with pytest.raises(TypeError, match=rf"q has dtype {str(dtype).removeprefix('torch.')}|{dtype}"):
                ft.kl_divergence(x.requires_grad_(needs_gradient), torch.ones(2, 3).to(dtype))


def exact_gradients(p, q, normalize, weight=None, base=None):
    """The derivatives of D(p‖q), or of the Jensen-Shannon divergence, by differences of numbers of 200 digits."""
    with mpmath.workdps(200):
        rows = [mpmath.mpf(float(x)) for x in (*p, *q)]
        n = len(p)

        def divergence(numbers):
            a, b = numbers[:n], numbers[n:]
            if normalize:
                a, b = ([x / mpmath.fsum(row) for x in row] for row in (a, b))
            if weight is None:
                pairs = [(1, a, b)]
            else:
                mixture = [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]
                pairs = [(weight, a, mixture), (1 - weight, b, mixture)]
            total = mpmath.fsum(
                share * x * mpmath.log(x / y) for share, xs, ys in pairs for x, y in zip(xs, ys, strict=True) if x
            )
            return total / (mpmath.log(base) if base else 1)

        slopes = []
        for i, x in enumerate(rows):
            step = abs(x) * mpmath.mpf(10) ** -25  # its square is what central differences leave, and is out of sight
            ends = [divergence([*rows[:i], x + sign * step, *rows[i + 1 :]]) for sign in (1, -1)]
            slopes.append((ends[0] - ends[1]) / (2 * step))
        return [np.array([float(x) for x in part]) for part in (slopes[:n], slopes[n:])]


class TestGradients:
    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_gradcheck(self, name, n, options, rng):
        operands = [x.requires_grad_() for x in tensors(rng, n, (3, 4))]
        assert torch.autograd.gradcheck(lambda *xs: getattr(ft, name)(*xs, **options), operands)
        assert torch.autograd.gradgradcheck(lambda *xs: getattr(ft, name)(*xs, **options), operands)

    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_differentiable_ones_are_the_same(self, name, n, options, rng):
        operands = [x.requires_grad_() for x in tensors(rng, n)]
        value = getattr(ft, name)(*operands, **options)
        upstream = torch.from_numpy(rng.random(value.shape))
        plain = torch.autograd.grad(value, operands, upstream, retain_graph=True)
        again = torch.autograd.grad(value, operands, upstream, create_graph=True)
        for ours, theirs in zip(plain, again, strict=True):
            assert not ours.requires_grad
            assert theirs.requires_grad
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_of_one_operand_at_a_time(self, name, n, options, rng):
        operands = tensors(rng, n, dtype=torch.float32)
        value = getattr(ft, name)(*(x.requires_grad_() for x in operands), **options)
        together = torch.autograd.grad(value.sum(), operands)
        for i, expected in enumerate(together):
            alone = [x.detach().requires_grad_(i == j) for j, x in enumerate(operands)]
            getattr(ft, name)(*alone, **options).sum().backward()
            assert [x.grad is not None for x in alone] == [i == j for j in range(n)]
            torch.testing.assert_close(alone[i].grad, expected)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize(("name", "n", "options"), CALLS, ids=IDS)
    def test_have_the_dtype_of_the_operand(self, name, n, options, dtype, rng):
        operands = [x.requires_grad_() for x in tensors(rng, n, dtype=DTYPES[dtype])]
        doubles = [x.detach().double().requires_grad_() for x in operands]
        for xs in (operands, doubles):
            getattr(ft, name)(*xs, **options).sum().backward()
        # Half a unit of the type's precision, and as much of float32 on the way, of the largest.
        eps = torch.finfo(DTYPES[dtype]).eps
        for x, double in zip(operands, doubles, strict=True):
            assert x.grad.dtype is DTYPES[dtype]
            error = (x.grad.double() - double.grad).abs().max() / double.grad.abs().max()
            assert error <= (8 * eps if dtype == "float32" else eps)

    @pytest.mark.parametrize("shapes", [((3, 1, 5), (4, 5)), ((5,), (2, 3, 5)), ((1, 5), (2, 5))])
    @pytest.mark.parametrize(
        "name", ["kl_divergence", "js_divergence", "kl_divergence_from_logits", "distillation_loss"]
    )
    def test_of_broadcast_operands(self, name, shapes, rng):
        operands = [x.requires_grad_() for shape in shapes for x in tensors(rng, 1, shape)]
        whole = [x.detach().expand(np.broadcast_shapes(*shapes)).clone().requires_grad_() for x in operands]
        for xs in (operands, whole):
            getattr(ft, name)(*xs).sum().backward()
        for x, all_of_it in zip(operands, whole, strict=True):
            assert x.grad.shape == x.shape
            torch.testing.assert_close(x.grad, all_of_it.grad.sum_to_size(x.shape))

    def test_of_rows_along_an_axis_that_one_operand_lacks(self, rng):
        p, q = (x.requires_grad_() for shape in ((1, 4, 3), (3,)) for x in tensors(rng, 1, shape))
        assert torch.autograd.gradcheck(lambda *xs: ft.kl_divergence(*xs, axis=0), (p, q))
        assert torch.autograd.gradgradcheck(lambda *xs: ft.kl_divergence(*xs, axis=0), (p, q))

    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("options", [{}, {"base": 2}, {"weight": 0.5}, {"weight": 0.125, "base": 10}])
    @pytest.mark.parametrize("kind", ["far", "near", "wide", "counts"])
    def test_are_exact(self, kind, options, normalize, rng):
        p = {
            "far": lambda: rng.random(7),
            "near": lambda: rng.random(7),
            "wide": lambda: 10.0 ** rng.uniform(-100, 0, 7),
            "counts": lambda: rng.integers(1, 10**6, 7).astype(float),
        }[kind]()
        q = p * (1 + 1e-9 * rng.standard_normal(7)) if kind == "near" else rng.permutation(p)
        operands = [torch.tensor(x, requires_grad=True) for x in (p, q)]
        function = ft.js_divergence if "weight" in options else ft.kl_divergence
        function(*operands, normalize=normalize, **options).backward()
        for x, expected in zip(operands, exact_gradients(p, q, normalize, **options), strict=True):
            # Sums of 7 terms and logarithms, of a few units or of some hundred: their roundings, relative to the largest.
            bound = 2e-15 if kind != "wide" else 1e-13
            assert np.abs(x.grad.numpy() - expected).max() <= bound * np.abs(expected).max()

    def test_of_long_rows_in_stretches(self, rng):
        """More than is taken at a time, along either axis, has the gradients of the rows one by one."""
        p, q = (x.requires_grad_() for x in tensors(rng, 2, (3, 5, 40_000)))
        ft.kl_divergence(p, q).sum().backward()
        row = [x.detach()[2, 3].requires_grad_() for x in (p, q)]
        ft.kl_divergence(*row).backward()
        torch.testing.assert_close(p.grad[2, 3], row[0].grad, rtol=0, atol=0)
        torch.testing.assert_close(q.grad[2, 3], row[1].grad, rtol=0, atol=0)
        many = [x.detach()[0].T.contiguous().requires_grad_() for x in (p, q)]
        ft.kl_divergence(*many).sum().backward()
        row = [x.detach()[39_999].requires_grad_() for x in many]
        ft.kl_divergence(*row).backward()
        torch.testing.assert_close(many[0].grad[39_999], row[0].grad, rtol=0, atol=0)

    def test_flow_through_what_surrounds(self, rng):
        """Two uses of an operand, an upstream gradient that is expanded, one that is zero, and in-place changes."""
        x = tensors(rng, 1, (4, 5))[0].requires_grad_()
        p, q = x.softmax(-1), (x**2).softmax(-1)
        value = ft.kl_divergence(p, q)
        (slope,) = torch.autograd.grad((value * torch.tensor([1.0, 0.0, 2.0, 1.0])).sum(), x, retain_graph=True)
        formula = (p * (p.log() - q.log())).sum(-1)
        (expected,) = torch.autograd.grad((formula * torch.tensor([1.0, 0.0, 2.0, 1.0])).sum(), x)
        torch.testing.assert_close(slope, expected)
        with torch.no_grad():
            x.add_(1.0)
        y = x.exp()
        value = ft.kl_divergence(y, y.detach().flip(-1)).sum()
        y.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def slopes(function, p, q, **options):
    p, q = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (p, q))
    value = function(p, q, **options)
    first = torch.autograd.grad(value.sum(), (p, q), retain_graph=True)
    again = torch.autograd.grad(value.sum(), (p, q), create_graph=True)
    for ours, theirs in zip(first, again, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), equal_nan=True)
    return [x.numpy() for x in first]


class TestCornersOfGradients:
    def test_zeros(self):
        # D = log 2 with the second bin in neither row and the third in q alone.
        to_p, to_q = slopes(ft.kl_divergence, [1.0, 0.0, 0.0], [0.5, 0.0, 0.5])
        np.testing.assert_allclose(to_p, [0.0, -1 - np.log(2), -1 - np.log(2)])
        np.testing.assert_allclose(to_q, [-1.0, 1.0, 1.0])
        to_p, to_q = slopes(ft.kl_divergence, [1.0, 0.0, 0.0], [0.5, 0.0, 0.5], normalize=False)
        np.testing.assert_allclose(to_p, [1 + np.log(2), 0.0, 0.0])
        np.testing.assert_allclose(to_q, [-2.0, 0.0, 0.0])

    def test_zeros_behind_a_softmax(self):
        """Where probabilities have come down to 0 the gradient with respect to logits is that of the kernel for them."""
        logits = [torch.tensor([[0.0, 1.0, -1000.0], [2.0, -1000.0, 0.0]], requires_grad=True) for _ in range(2)]
        q = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        ft.kl_divergence(logits[0].softmax(-1), q.softmax(-1)).sum().backward()
        ft.kl_divergence_from_logits(logits[1], q).sum().backward()
        torch.testing.assert_close(logits[0].grad, logits[1].grad)

    def test_zeros_of_js(self):
        to_p, to_q = slopes(ft.js_divergence, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
        # w log(p/m) = log(2)/2 where p is, less the mean over p; -w where q alone is; 0 where neither is.
        np.testing.assert_allclose(to_p, [0.0, -np.log(2) / 2, -0.5 - np.log(2) / 2])
        np.testing.assert_allclose(to_q, to_p[::-1])
        for weight in (0.0, 1.0):
            for slope in slopes(ft.js_divergence, [1.0, 0.0], [0.0, 1.0], weight=weight):
                np.testing.assert_array_equal(slope, 0.0)

    def test_infinite_divergence(self):
        to_p, to_q = slopes(ft.kl_divergence, [0.5, 0.5], [1.0, 0.0])
        assert np.isnan(to_p).all()
        np.testing.assert_array_equal(to_q, [0.5, -np.inf])

    @pytest.mark.parametrize("bad", [[np.nan, 1.0], [-1.0, 2.0], [np.inf, 1.0], [0.0, 0.0]])
    @pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
    def test_invalid_rows(self, name, bad):
        good = [1.0, 3.0]
        for p, q in (([bad, good], [good, bad[::-1]]), ([good, good], [bad, [3.0, 1.0]])):
            for slope in slopes(getattr(ft, name), p, q):
                invalid = np.isnan(p).any(-1) | np.isnan(q).any(-1) | [bad in (a, b, b[::-1]) for a, b in zip(p, q)]
                np.testing.assert_array_equal(np.isnan(slope), np.broadcast_to(invalid[:, None], slope.shape))

    def test_equal_rows(self):
        for name in ("kl_divergence", "js_divergence"):
            for slope in slopes(getattr(ft, name), [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]):
                np.testing.assert_array_equal(slope, 0.0)

    def test_no_rows(self):
        p = torch.ones(0, 3, requires_grad=True)
        for name in ("kl_divergence", "js_divergence", "kl_divergence_from_logits", "distillation_loss", "gaussian_kl"):
            (slope,) = torch.autograd.grad(getattr(ft, name)(p, torch.ones(0, 3)).sum(), p)
            assert slope.shape == (0, 3)


def operator_calls(rng):
    """Each operator with operands that broadcast, and what it takes after them."""
    p, q = (x.requires_grad_() for x in (*tensors(rng, 1, (3, 5)), *tensors(rng, 1, (5,))))
    rows = torch.from_numpy(rng.random((3, 1)))
    return {
        "kl_divergence": (p, q, True, None, -1, False, None, "nan"),
        "js_divergence": (p, q, 0.25, False, 2.0, 1, True, 1, "nan"),
        "kl_divergence_from_logits": (p, q, 2.0, 2.0, -1, True, None, "nan"),
        "distillation_loss": (p, q, 2.0, "batchmean", -1, None, "nan"),
        "gaussian_kl": (p, q, None, None, "var", -1, False, None, "nan"),
        "discrete_backward": (rows, p.detach(), q.detach(), [True, True], 0.5, True, None, -1),
        "logits_backward": (rows, p.detach(), q.detach(), [False, True], 2.0, None, -1, None),
        "gaussian_backward": (rows, p.detach(), q.detach(), q.detach(), p.detach(), [True, False, True, True], "std"),
    }


class TestOperators:
    @pytest.mark.parametrize("name", operator_calls(np.random.default_rng(0)))
    def test_opcheck(self, name, rng):
        torch.library.opcheck(getattr(torch.ops.fastkl, name).default, operator_calls(rng)[name])

    def test_are_traced(self, rng):
        """Whoever listens to operators hears of the calls; a call without the dispatcher would be a constant to them."""
        p, q = tensors(rng, 2)
        graph = torch.fx.experimental.proxy_tensor.make_fx(lambda a, b: ft.kl_divergence(a, b) + 1)(p, q)
        assert torch.ops.fastkl.kl_divergence.default in [node.target for node in graph.graph.nodes]
        torch.testing.assert_close(graph(q, p), ft.kl_divergence(q, p) + 1)
        exported = torch.export.export(Module(), (p, q))
        torch.testing.assert_close(exported.module()(q, p), ft.js_divergence(q, p))
        with torch._subclasses.FakeTensorMode() as mode:
            fake = ft.kl_divergence(mode.from_tensor(p).bfloat16(), mode.from_tensor(q)[0].half())
        assert (fake.shape, fake.dtype) == ((4,), torch.float32)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of what PyTorch itself calls
    def test_forward_mode_is_refused(self, rng):
        p, q = tensors(rng, 2)
        with pytest.raises(NotImplementedError, match="p has a tangent"):
            torch.func.jvp(ft.kl_divergence, (p, q), (p, q))
        with torch.autograd.forward_ad.dual_level():
            torch.testing.assert_close(ft.kl_divergence(p, q), ft.kl_divergence(p.clone(), q))
            with pytest.raises(NotImplementedError, match="q has a tangent"):
                ft.kl_divergence(p, torch.autograd.forward_ad.make_dual(q, p))


class Module(torch.nn.Module):
    def forward(self, p, q):
        return ft.js_divergence(p, q)


def everything(p, q, s):
    """A loss of all the functions, for compilers."""
    return (
        ft.kl_divergence(p.exp(), q, base=2).sum()
        + ft.js_divergence(p, p * q, weight=0.25, axis=0, keepdims=True).mean()
        + ft.kl_divergence_from_logits(p * 2, q, temperature=1.5).sum()
        + ft.distillation_loss(p, q, temperature=2.0)
        + ft.distillation_loss(p, q, reduction="none").square().sum()
        + ft.gaussian_kl(p, s, 0.0, q, scale="std").sum()
        + ft.gaussian_kl(p, s, axis=None).sum()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself calls
class TestCompile:
    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_whole_graph(self, dtype, rng):
        torch._dynamo.reset()
        compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
        self.compare(compiled, everything, [tensors(rng, 1, shape, DTYPES[dtype])[0] for shape in ((3, 5), (5,), (5,))])

    def test_dynamic_shapes(self, rng):
        torch._dynamo.reset()
        compiled = torch.compile(everything, backend="aot_eager", fullgraph=True, dynamic=True)
        for m, n in ((3, 5), (6, 4)):
            self.compare(compiled, everything, [tensors(rng, 1, shape)[0] for shape in ((m, n), (n,), (n,))])

    def test_inductor(self, rng):
        torch._dynamo.reset()

        def loss(p, q):
            return ft.kl_divergence(p.exp(), q + 1).sum()

        p, q = tensors(rng, 2)
        torch.testing.assert_close(torch.compile(loss, fullgraph=True)(p, q), loss(p, q))

    def compare(self, compiled, function, operands):
        xs, ys = ([x.clone().requires_grad_() for x in operands] for _ in range(2))
        ours, expected = compiled(*xs), function(*ys)
        torch.testing.assert_close(ours, expected)
        ours.backward()
        expected.backward()
        for x, y in zip(xs, ys, strict=True):
            torch.testing.assert_close(x.grad, y.grad)

    def test_refusals(self):
        compiled = torch.compile(ft.kl_divergence, backend="eager")
        with pytest.raises(ValueError, match="rows must be equally long"):
            compiled(torch.ones(3), torch.ones(4))
        with pytest.raises(ValueError, match="base must be None"):
            compiled(torch.ones(3), torch.ones(3), base=1.0)


VMAPPED = {
    "kl": lambda a, b: ft.kl_divergence(a, b),
    "js": lambda a, b: ft.js_divergence(a, b, weight=0.2, axis=0, keepdims=True),
    "logits": lambda a, b: ft.kl_divergence_from_logits(a, b, temperature=2.0, axis=0),
    "mean": lambda a, b: ft.distillation_loss(a, b),
    "sum": lambda a, b: ft.distillation_loss(a, b, axis=0, reduction="sum"),
    "rows": lambda a, b: ft.distillation_loss(a, b, reduction="none"),
    "matrix": lambda a, b: ft.distillation_loss(a.expand(2, -1), b),
    "gaussian": lambda a, b: ft.gaussian_kl(a, b),
    "prior": lambda a, b: ft.gaussian_kl(a, b, 1.0, a, axis=0),
    "scalar": lambda a, b: ft.gaussian_kl(a, b[0]),
    "elements": lambda a, b: ft.gaussian_kl(a.expand(2, -1), b, axis=None),
}


class TestTransforms:
    @pytest.mark.parametrize("dims", [(0, 0), (1, 1), (0, None), (None, 0)])
    @pytest.mark.parametrize("name", VMAPPED)
    def test_vmap_and_grad(self, name, dims, rng):
        function = VMAPPED[name]
        operands = [x if dim is not None else x[0] for x, dim in zip(tensors(rng, 2, (4, 4)), dims, strict=True)]
        one_by_one = [
            [x if d is None else x.select(d, i) for x, d in zip(operands, dims, strict=True)] for i in range(4)
        ]
        mapped = torch.vmap(function, dims)
        torch.testing.assert_close(mapped(*operands), torch.stack([function(*pair) for pair in one_by_one]))
        twice = torch.vmap(mapped)(*(torch.stack([x, 2 * x]) for x in operands))
        torch.testing.assert_close(twice, torch.stack([mapped(*operands), mapped(*(2 * x for x in operands))]))

        slope = torch.func.grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))
        expected = [torch.stack(xs) for xs in zip(*(slope(*pair) for pair in one_by_one), strict=True)]
        recorded = [[x.clone().requires_grad_() for x in pair] for pair in one_by_one]
        for pair in recorded:
            function(*pair).sum().backward()
        for i, found in enumerate(torch.vmap(slope, dims)(*operands)):
            torch.testing.assert_close(found, expected[i])
            torch.testing.assert_close(found, torch.stack([pair[i].grad for pair in recorded]))

    @pytest.mark.parametrize("dims", [(0, 0), (1, 1), (0, None)])
    @pytest.mark.parametrize("name", VMAPPED)
    def test_gradients_of_mapped_functions(self, name, dims, rng):
        function = VMAPPED[name]
        operands = [x if dim is not None else x[0] for x, dim in zip(tensors(rng, 2, (4, 4)), dims, strict=True)]
        mapped = torch.vmap(function, dims)

        def total(a, b):
            """Of the results for each, without torch.vmap."""
            each = [[x if d is None else x.select(d, i) for x, d in zip((a, b), dims, strict=True)] for i in range(4)]
            return torch.stack([function(*pair) for pair in each]).sum()

        recorded = [x.clone().requires_grad_() for x in operands]
        total(*recorded).backward()
        found = torch.func.grad(lambda a, b: mapped(a, b).sum(), argnums=(0, 1))(*operands)
        for ours, x in zip(found, recorded, strict=True):
            torch.testing.assert_close(ours, x.grad)
        jacobian = torch.func.jacrev(mapped)(*operands)
        torch.testing.assert_close(jacobian.flatten(0, -3).sum(0), recorded[0].grad)
        outer = torch.vmap(torch.func.grad(lambda a, b: mapped(a, b).sum()))(*(torch.stack([x, x]) for x in operands))
        torch.testing.assert_close(outer, torch.stack([recorded[0].grad] * 2))

    def test_jacobian_and_hessian(self, rng):
        p, q = tensors(rng, 2, (3, 4))
        jacobian = torch.func.jacrev(ft.kl_divergence)(p, q)
        torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(lambda x: ft.kl_divergence(x, q), p))
        hessian = torch.func.jacrev(torch.func.jacrev(ft.kl_divergence))(p[0], q[0])
        formula = lambda a: ((a / a.sum()) * ((a / a.sum()).log() - (q[0] / q[0].sum()).log())).sum()
        torch.testing.assert_close(hessian, torch.autograd.functional.hessian(formula, p[0]))


def test_examples_of_the_docstrings():
    assert doctest.testmod(ft).failed == 0


def test_nothing_is_imported_unasked():
    code = "import sys, fastkl; assert not {'torch', 'fastkl.torch', 'fastkl.compat'} & set(sys.modules)"
    path = str(pathlib.Path(fastkl.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True, timeout=60)
