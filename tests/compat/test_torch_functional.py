"""``fastkl.compat.torch_functional`` beside ``torch.nn.functional``: values, gradients, warnings and exceptions."""

import inspect
import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from dropins import outcome
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

import fastkl

torch = pytest.importorskip("torch")

from fastkl.compat import torch_functional

original = torch.nn.functional.kl_div
drop_in = torch_functional.kl_div

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "batchmean", "sum"]


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """The warning about "mean" comes with most calls; the tests of warnings look at them by themselves."""
    warnings.filterwarnings("ignore", "reduction: 'mean' divides", UserWarning)


@pytest.fixture
def always_ours(monkeypatch):
    """Gradients of small tensors are PyTorch's, because that is quicker; here they are ours."""
    monkeypatch.setattr(torch_functional, "_gains_with_gradient", lambda n, code, log_target: True)


def make(rng, shape, dtype, *, log_target=False):
    x, t = (torch.from_numpy(rng.standard_normal(shape)) for _ in "xt")
    axis = -1 if x.dim() else 0
    t = t.log_softmax(axis) if log_target else t.softmax(axis)
    return x.log_softmax(axis).to(dtype), t.to(dtype)


def tolerance(dtype, *operands, log_target):
    """PyTorch's error: a few roundings to dtype of each term's parts, of which the terms are differences."""
    x, t = (operand.detach().double() for operand in operands)
    weight = t.exp() if log_target else t
    logarithm = t if log_target else torch.where(t > 0, t, 1).log()
    parts = weight * (logarithm.abs() + x.abs() + 1)
    return 6 * torch.finfo(dtype).eps * parts.nan_to_num(0.0, 0.0, 0.0)


def assert_near(ours, theirs, bound):
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.requires_grad == theirs.requires_grad
    ours, theirs = ours.detach().double(), theirs.detach().double()
    exact = torch.isfinite(theirs) | torch.isfinite(ours)
    assert torch.equal(ours[~exact].nan_to_num(7.0), theirs[~exact].nan_to_num(7.0))
    assert (torch.abs(ours - theirs)[exact] <= torch.as_tensor(bound).expand(ours.shape)[exact]).all()


def reduced(bound, reduction, dtype, shape, x):
    """The bound of a reduction of terms with these bounds: PyTorch rounds the sum, in blocks, and the quotient."""
    if reduction == "none":
        return bound
    total = 2 * bound.sum()
    if reduction == "sum":
        return total
    return total / (max(1, bound.numel()) if reduction == "mean" else x.shape[0] if x.dim() else 1)


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(level, dtype, reduction, log_target, rng):
    for shape in [(), (1,), (7,), (33,), (3, 5), (2, 3, 17), (0,), (0, 3), (3, 0), (300, 40)]:
        x, t = make(rng, shape, dtype, log_target=log_target)
        ours, theirs = (f(x, t, reduction=reduction, log_target=log_target) for f in (drop_in, original))
        bound = tolerance(dtype, x, t, log_target=log_target)
        assert_near(ours, theirs, reduced(bound, reduction, dtype, shape, x))
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(level, dtype, log_target, rng):
    x, t = make(rng, (30, 40), dtype, log_target=log_target)
    wide = torch.zeros(30, 80, dtype=dtype)
    wide[:, ::2] = t
    for a, b in [
        (x.T, t.T),
        (x, t.T.contiguous().T),
        (x.T.contiguous().T, t),
        (x[::2], t[1::2]),
        (x[:, ::3], t[:, ::3]),
        (x, wide[:, ::2]),
        (x, t[0]),
        (x[:, :1], t),
        (x[0], t[:, :1]),
        (x[None], t[:, None]),
        (x[0, 0], t),
        (x, t[0, 0]),
        (x.flip(0), t),
        (x.reshape(5, 6, 40).permute(2, 0, 1), t.reshape(5, 6, 40).permute(2, 0, 1)),
    ]:
        for reduction in REDUCTIONS:
            ours, theirs = (f(a, b, reduction=reduction, log_target=log_target) for f in (drop_in, original))
            bound = tolerance(dtype, *torch.broadcast_tensors(a, b), log_target=log_target)
            assert_near(ours, theirs, reduced(bound, reduction, dtype, None, a))
            for length, stride, other in zip(ours.shape, ours.stride(), theirs.stride(), strict=True):
                assert length == 1 or stride == other, (a.stride(), b.stride())


def test_sums_beyond_float32(always_ours):
    """They are infinite, as other numbers beyond their type; in between, a mean counts."""
    least = torch.finfo(torch.float32).min
    x = torch.tensor([[0.0, least, least]] * 2)
    t = torch.full((2, 3), 1 / 3)
    assert drop_in(x, t, reduction="sum") == original(x, t, reduction="sum") == torch.inf
    assert drop_in(-x, t, reduction="sum") == original(-x, t, reduction="sum") == -torch.inf
    assert drop_in(x.requires_grad_(), t, reduction="sum") == torch.inf
    assert drop_in(torch.zeros(4), torch.full((4,), 3e38), reduction="batchmean") == torch.inf
    torch.testing.assert_close(drop_in(x.detach(), t, reduction="batchmean"), torch.tensor(-2 / 3 * least))


def test_zeros_that_are_nowhere_in_memory():
    x, t = torch._efficientzerotensor((3,), dtype=torch.float32), torch.rand(3)
    assert x._is_zerotensor() and x.data_ptr() == 0
    for reduction in ("none", "sum"):
        for pair in ((x, t), (t, x), (x, x)):
            torch.testing.assert_close(
                drop_in(*pair, reduction=reduction), original(*pair, reduction=reduction), equal_nan=True
            )


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_numbers(level, dtype, log_target):
    inf, nan = float("inf"), float("nan")
    inputs = torch.tensor([0.0, -0.0, -1.0, -80.0, -750.0, 3.0, inf, -inf, nan], dtype=dtype)
    targets = [0.0, -0.0, 1.0, 0.5, 1e-7, 1e-40, 1e-310, 2.0, inf, nan]
    targets += [-1.0, -79.0, -81.0, -200.0, -710.0, -1e4, -inf] if log_target else [-0.5]
    x, t = torch.meshgrid(inputs, torch.tensor(targets, dtype=torch.float64).to(dtype), indexing="ij")
    x, t = x.contiguous(), t.contiguous()
    if log_target:  # where e^t is 0 to PyTorch and not to us, its product with an infinity is NaN there
        same = ~(torch.isinf(x) & (t.exp() < torch.finfo(dtype).smallest_normal) & torch.isfinite(t))
        x, t = x[same], t[same]
    ours, theirs = (f(x, t, reduction="none", log_target=log_target) for f in (drop_in, original))
    assert_near(ours, theirs, tolerance(dtype, x, t, log_target=log_target) + torch.finfo(dtype).smallest_normal)
    for k in range(x.numel()):
        a, b = x.reshape(-1)[k : k + 1], t.reshape(-1)[k : k + 1]
        ours, alone = (f(a, b, reduction="sum", log_target=log_target) for f in (drop_in, original))
        bound = tolerance(dtype, a, b, log_target=log_target) + torch.finfo(dtype).smallest_normal
        assert_near(ours, alone, bound.sum())


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_are_exact(level, dtype, log_target, rng):
    """Of float32 the sum is computed in double and rounded once; the exponentials in float arithmetic."""
    x, t = make(rng, (50, 100), dtype, log_target=log_target)
    ours = drop_in(x, t, reduction="sum", log_target=log_target).item()
    with ctx.workprec(200):
        total, size = arb(0), arb(0)
        for a, b in zip(x.flatten().tolist(), t.flatten().tolist(), strict=True):
            logarithm = arb(b) if log_target else arb(b).log()
            weight = arb(b).exp() if log_target else arb(b)
            total += weight * (logarithm - arb(a))
            size += abs(weight * (logarithm - arb(a)))
        error = abs(float(arb(ours) - total))
    assert error <= float(size) * (4 * torch.finfo(torch.float64).eps) + abs(ours) * (
        torch.finfo(dtype).eps * (2 if log_target else 0.51)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_lose_nothing_but_the_last_rounding(level, dtype, rng):
    x, t = make(rng, (100, 50), dtype)
    wide = original(x.double(), t.double(), reduction="none")
    error = (drop_in(x, t, reduction="none").double() - wide).abs()
    # Half a unit of a number's own size, and 2^-10 of that for having been a float in between.
    assert (error <= 0.501 * torch.finfo(dtype).eps * wide.abs() + torch.finfo(dtype).smallest_normal * 2**-9).all()
    total = wide.sum()
    assert abs(drop_in(x, t, reduction="sum").double() - total) <= 0.501 * torch.finfo(dtype).eps * total


@given(
    st.lists(st.integers(0, 4), max_size=3),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.sampled_from(DTYPES),
    st.sampled_from(REDUCTIONS),
    st.booleans(),
)
def test_shapes_that_broadcast(shape, ones, dtype, reduction, log_target):
    x_shape = [1 if one else n for n, one in zip(shape, ones, strict=False)]
    t_shape = [1 if one else n for n, one in zip(shape, ones[3:], strict=False)]
    rng = np.random.default_rng(len(shape))
    x, _ = make(rng, tuple(x_shape), dtype)
    _, t = make(rng, tuple(t_shape), dtype, log_target=log_target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (outcome(f, x, t, reduction=reduction, log_target=log_target) for f in (drop_in, original))
    bound = tolerance(dtype, *torch.broadcast_tensors(x, t), log_target=log_target)
    assert_near(ours.value, theirs.value, reduced(bound, reduction, dtype, None, x))


# ---- gradients ---------------------------------------------------------------------------------------------------


def with_gradients(function, x, t, **kwargs):
    x, t = x.detach().clone().requires_grad_(), t.detach().clone().requires_grad_()
    value = function(x, t, **kwargs)
    return value, *torch.autograd.grad(value, (x, t), torch.ones_like(value) / 3)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(always_ours, dtype, reduction, log_target, rng):
    for x_shape, t_shape in [((6, 7), (6, 7)), ((6, 7), (7,)), ((1, 7), (6, 1)), ((), ()), ((5,), (4, 5))]:
        x, t = make(rng, x_shape, dtype)[0], make(rng, t_shape, dtype, log_target=log_target)[1]
        (_, *ours), (_, *theirs) = (
            with_gradients(f, x, t, reduction=reduction, log_target=log_target) for f in (drop_in, original)
        )
        for mine, its in zip(ours, theirs, strict=True):
            size = (1 + its.abs().max().item()) * 42
            assert_near(mine, its, 8 * torch.finfo(dtype).eps * size)


def test_gradients_at_0(always_ours):
    x, t = torch.tensor([-1.0, -2.0]), torch.tensor([0.0, 0.5])
    (_, *ours), (_, *theirs) = (with_gradients(f, x, t, reduction="sum") for f in (drop_in, original))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, equal_nan=True)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(always_ours, reduction, log_target, rng):
    for shapes in [((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 4), (3, 1))]:
        x, t = make(rng, shapes[0], torch.float64)[0], make(rng, shapes[1], torch.float64, log_target=log_target)[1]
        x, t = x.requires_grad_(), (t if log_target else t + 0.1).detach().requires_grad_()

        def call(x, t):
            return drop_in(x, t, reduction=reduction, log_target=log_target)

        assert torch.autograd.gradcheck(call, (x, t), check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, (x, t), check_batched_grad=True)


def test_one_gradient_only(always_ours, rng):
    x, t = make(rng, (5, 6), torch.float64)
    for log_target, k in itertools.product((False, True), (0, 1)):
        operands = [x.clone(), t.clone()]
        operands[k].requires_grad_()
        ours, theirs = (
            torch.autograd.grad(f(*operands, reduction="sum", log_target=log_target), operands[k])[0]
            for f in (drop_in, original)
        )
        torch.testing.assert_close(ours, theirs)
        assert operands[1 - k].grad is None


def test_large_tensors_have_our_gradients(rng):
    x, t = make(rng, (200, 700), torch.float32)
    x.requires_grad_()
    assert "KLDiv" in type(drop_in(x, t, reduction="sum").grad_fn).__name__
    assert "KLDiv" in type(drop_in(x, t.log(), reduction="sum", log_target=True).grad_fn).__name__
    assert "KLDiv" not in type(drop_in(x[:5], t[:5], reduction="sum").grad_fn).__name__
    assert drop_in(x.detach(), t, reduction="sum").grad_fn is None
    with torch.no_grad():
        assert drop_in(x, t, reduction="sum").grad_fn is None
    with torch.inference_mode():
        assert drop_in(x, t, reduction="sum").is_inference()


def test_changed_operand_is_noticed(always_ours, rng):
    x, t = make(rng, (5, 6), torch.float64)
    x.requires_grad_()
    value = drop_in(x, t, reduction="sum")
    t.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# ---- calls -------------------------------------------------------------------------------------------------------


def test_signature():
    assert inspect.signature(drop_in) == inspect.signature(original)


CALLS = {
    "mean": lambda f, x, t: f(x, t),
    "by position": lambda f, x, t: f(x, t, None, None, "sum", False),
    "size_average": lambda f, x, t: f(x, t, size_average=True),
    "not size_average": lambda f, x, t: f(x, t, size_average=False),
    "reduce": lambda f, x, t: f(x, t, reduce=True),
    "not reduce": lambda f, x, t: f(x, t, reduce=False),
    "both": lambda f, x, t: f(x, t, False, True, "batchmean"),
    "both, mean": lambda f, x, t: f(x, t, True, True, "batchmean"),
    "both, none": lambda f, x, t: f(x, t, None, False, "batchmean"),
    "elementwise_mean": lambda f, x, t: f(x, t, reduction="elementwise_mean"),
    "no such reduction": lambda f, x, t: f(x, t, reduction="total"),
    "no reduction": lambda f, x, t: f(x, t, reduction=None),
    "log_target is no bool": lambda f, x, t: f(x, t, reduction="sum", log_target="yes"),
    "log_target is a number": lambda f, x, t: f(x, t, reduction="sum", log_target=1),
    "shapes": lambda f, x, t: f(x, t[:, :3], reduction="sum"),
    "other shapes": lambda f, x, t: f(x[:2], t, reduction="none"),
    "integers": lambda f, x, t: f(x.long(), t, reduction="sum"),
    "integer target": lambda f, x, t: f(x, t.long(), reduction="sum"),
    "complex": lambda f, x, t: f(x + 0j, t, reduction="sum"),
    "bool": lambda f, x, t: f(x > 0, t, reduction="sum"),
    "list": lambda f, x, t: f([0.0], t, reduction="sum"),
    "array": lambda f, x, t: f(x.numpy(), t, reduction="sum"),
    "None": lambda f, x, t: f(x, None, reduction="sum"),
    "two dtypes": lambda f, x, t: f(x, t.double(), reduction="batchmean"),
    "two halves": lambda f, x, t: f(x.half(), t.bfloat16(), reduction="sum"),
    "dtypes of a scalar": lambda f, x, t: f(x, t[0, 0].double(), reduction="none"),
    "parameter": lambda f, x, t: f(torch.nn.Parameter(x), t, reduction="batchmean"),
    "meta": lambda f, x, t: f(x.to("meta"), t.to("meta"), reduction="sum").shape,
    "sparse": lambda f, x, t: f(x.to_sparse(), t, reduction="sum"),
    "no axis, batchmean": lambda f, x, t: f(x[0, 0], t[0, 0], reduction="batchmean"),
    "nothing, batchmean": lambda f, x, t: f(x[:0], t[:0], reduction="batchmean"),
    "nothing, mean": lambda f, x, t: f(x[:0], t[:0]),
    "unknown keyword": lambda f, x, t: f(x, t, axis=0),
    "one argument": lambda f, x, t: f(x),
    "conjugate views": lambda f, x, t: f(torch.view_as_real(torch.complex(x, x).conj())[..., 1], t, reduction="sum"),
    "negative view": lambda f, x, t: f(torch.complex(x, x).conj().imag, t, reduction="sum"),
}


@pytest.mark.parametrize("how", CALLS)
def test_calls(how, rng):
    x, t = make(rng, (4, 5), torch.float32)
    with torch.no_grad():
        ours, theirs = (outcome(CALLS[how], function, x, t) for function in (drop_in, original))
    assert type(ours.error) is type(theirs.error)
    assert str(ours.error) == str(theirs.error)
    assert ours.warnings == theirs.warnings
    if theirs.error is None:
        assert type(ours.value) is type(theirs.value)
        torch.testing.assert_close(ours.value, theirs.value, equal_nan=True)


def test_warning_is_of_the_caller(rng):
    x, t = make(rng, (4, 5), torch.float32)
    with pytest.warns(UserWarning, match="reduction: 'mean'") as caught:
        drop_in(x, t)
    assert caught[0].filename == __file__


class Subclass(torch.Tensor):
    pass


def test_subclass(rng):
    x, t = make(rng, (4, 5), torch.float32)
    ours, theirs = (f(x.as_subclass(Subclass), t, reduction="sum") for f in (drop_in, original))
    assert type(ours) is type(theirs) is Subclass
    assert ours.item() == theirs.item()


def test_functions_that_override(rng):
    class Logged:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function

    assert drop_in(Logged(), Logged()) is original(Logged(), Logged()) is original


def test_whatever_watches_operations_sees_those_of_pytorch(rng):
    x, t = make(rng, (4, 5), torch.float64)

    def ours(x):
        return drop_in(x, t, reduction="sum")

    def theirs(x):
        return original(x, t, reduction="sum")

    for transform in (
        lambda f: torch.func.grad(f)(x),
        lambda f: torch.func.vmap(f, in_dims=0)(x.expand(3, 4, 5)),
        lambda f: torch.func.jvp(f, (x,), (x,))[1],
        lambda f: torch.func.hessian(f)(x),
        lambda f: torch.autograd.functional.jacobian(f, x, vectorize=True),
        lambda f: torch.jit.trace(f, (x,))(2 * x),
        lambda f: torch.compile(f, backend="eager", fullgraph=True)(x),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.testing.assert_close(transform(ours), transform(theirs))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangents = [torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (ours, theirs)]
    torch.testing.assert_close(*tangents)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x))
    with torch._subclasses.FakeTensorMode() as mode:
        assert drop_in(mode.from_tensor(x), mode.from_tensor(t), reduction="sum").shape == ()


# ---- PyTorch's own samples ---------------------------------------------------------------------------------------

# In a Python of its own: PyTorch's test helpers change much of the interpreter. Once with our derivatives and once with
# what the sizes choose.
SAMPLES = """
import torch, warnings
warnings.simplefilter("ignore")
from torch.testing._internal.common_methods_invocations import op_db
from fastkl.compat import torch_functional

chosen = torch_functional._gains_with_gradient
[info] = [info for info in op_db if info.name == "nn.functional.kl_div"]
count = 0
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        operands = [tensor.detach().clone().requires_grad_() for tensor in (sample.input, *sample.args)]

        def values(function):
            value = function(*operands, **sample.kwargs)
            return value, *torch.autograd.grad(value, operands, torch.ones_like(value))

        expected = values(torch.nn.functional.kl_div)
        for choice in (chosen, lambda *args: True):
            torch_functional._gains_with_gradient = choice
            # PyTorch rounds each part of a term.
            rounding = dict(rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
            torch.testing.assert_close(values(torch_functional.kl_div), expected, **rounding)
        if dtype == torch.float64:
            call = lambda *operands: torch_functional.kl_div(*operands, **sample.kwargs)
            assert torch.autograd.gradcheck(call, operands, fast_mode=True)
            assert torch.autograd.gradgradcheck(call, operands, fast_mode=True)
        count += 1
print(count)
"""


def test_samples_of_pytorch():
    pytest.importorskip("expecttest")  # which PyTorch's own tests need
    assert int(run(SAMPLES)) >= 64


def run(program, **variables):
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(fastkl.__file__))} | variables
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


THREADS = """
import numpy as np, torch
from fastkl.compat.torch_functional import kl_div
rng = np.random.default_rng(0)
x = torch.from_numpy(rng.standard_normal((300, 1001))).log_softmax(-1)
t = torch.from_numpy(rng.standard_normal((300, 1001))).softmax(-1)
for a, b in ((x, t), (x.float(), t.float()), (x.T, t.T), (x[:, ::2], t[:, ::2]), (x.bfloat16(), t.bfloat16())):
    print(kl_div(a, b, reduction="sum").item().hex(), kl_div(a, b, reduction="none").double().sum().item().hex())
"""


def test_number_of_threads_does_not_matter():
    assert len({run(THREADS, FASTKL_NUM_THREADS=number, OMP_NUM_THREADS="1") for number in ("1", "2", "5")}) == 1
