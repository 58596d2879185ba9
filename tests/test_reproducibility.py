"""A row's result depends on its values alone: not on threads, batch, layout, or which of avx2 and avx512 runs."""

import numpy as np
import pytest
from logits_oracle import METRICS as LOGITS_METRICS
from oracles import METRICS, bfloat16_bits

import fastkl
from fastkl._kernels import _engine

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 1000)
TYPES = ("float64", "float32", "float16", "bfloat16", "int32")


class Weights:
    """Rows of all sorts, and all that is computed of them; normalised or not."""

    def __init__(self, normalize=True):
        self.normalize = normalize

    def rows(self, rng, shape, type_name):
        """A pair of operands of all sorts of rows, and the options that the type needs."""
        p, q = rng.random((2, *shape)) + 0.01
        q[1::7] = p[1::7] * (1 + 1e-4 * rng.standard_normal(p[1::7].shape))
        q[2::7] = p[2::7]
        p[3::7] *= rng.random(p[3::7].shape) < 0.7
        p[4::7] **= 30
        q[5::7] *= rng.random(q[5::7].shape) < 0.5
        for x in (p, q):  # rows that weigh the same stand among others
            x[::3] /= np.maximum(x[::3].sum(-1, keepdims=True), 1e-300)
        if type_name.startswith("float"):  # a NaN must not hide its neighbours' zeros and negative numbers
            q[6::7][..., 0] = np.nan
            p[10::13][..., -1] = -1
        if type_name == "bfloat16":
            return bfloat16_bits(p), bfloat16_bits(q), {"dtype": "bfloat16"}
        scale = 1000 if type_name == "int32" else 1
        return (p * scale).astype(type_name), (q * scale).astype(type_name), {}

    def scores(self, p, q, **options):
        """The results of all metrics by name."""
        scores = fastkl.score(p, q, METRICS, alpha=0.7, weight=0.4, normalize=self.normalize, **options)
        halves = fastkl.score(p, q, ("js", "js_distance"), normalize=self.normalize, **options)
        return scores | {f"{name} of halves": score for name, score in halves.items()}

    def bits(self, p, q, **options):
        """Each result as a string of bytes."""
        return {name: np.asarray(score).tobytes() for name, score in self.scores(p, q, **options).items()}


class Logits(Weights):
    """The same of rows of logits, gradients included."""

    def rows(self, rng, shape, type_name):
        p, q = rng.standard_normal((2, *shape)) * 4
        q[1::7] = p[1::7] + 1e-4 * rng.standard_normal(p[1::7].shape)
        q[2::7] = p[2::7]
        p[4::7] *= 30
        p[6::7] = np.sort(p[6::7])
        scale = 100 if type_name == "int32" else 1
        if type_name != "int32":
            p[3::7][rng.random(p[3::7].shape) < 0.3] = -np.inf
            q[5::7][rng.random(q[5::7].shape) < 0.3] = -np.inf
            q[6::7][..., 0] = np.nan
            p[10::13][..., -1] = np.inf
        if type_name == "bfloat16":
            return bfloat16_bits(p), bfloat16_bits(q), {"dtype": "bfloat16"}
        return (p * scale).astype(type_name), (q * scale).astype(type_name), {}

    def scores(self, p, q, *, axis=-1, **options):
        options |= {"axis": axis, "temperature": 0.7}
        scores = fastkl.score_from_logits(p, q, LOGITS_METRICS, weight=0.4, **options)
        gradients = fastkl.kl_divergence_from_logits_grad(p, q, **options)
        options.pop("base", None)
        _, gradient = fastkl.distillation_loss(q, p, reduction="none", return_grad=True, **options)
        for name, array in zip(("by p", "by q", "loss by q"), (*gradients, gradient), strict=True):
            scores[name] = np.moveaxis(array, axis, -1)
        return scores


LOGITS = Logits()
FAMILIES = {"normalized": Weights(True), "plain": Weights(False), "logits": LOGITS}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
families_that_differ = pytest.mark.parametrize("family", [FAMILIES["normalized"], LOGITS], ids=["discrete", "logits"])


@families_that_differ
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(30_000, 3), (4_000, 17), (700, 64), (70, 1000), (3, 40_000), (1, 100_000)], ids=str)
def test_threads(family, shape, type_name, level, rng):
    p, q, types = family.rows(rng, shape, type_name)
    expected = family.bits(p, q, n_threads=1, **types)
    for n_threads in (None, 2, 3, 5):
        assert family.bits(p, q, n_threads=n_threads, **types) == expected, n_threads


@pytest.mark.parametrize("type_name", TYPES)
@each_family
def test_batch(family, type_name, level, rng):
    """Alone, at each place of batches of every size up to 40, and among other neighbours."""
    for length in LENGTHS:
        p, q, types = family.rows(rng, (40, length), type_name)
        scores = family.scores(p, q, **types)
        alone = [family.bits(a, b, **types) for a, b in zip(p, q, strict=True)]
        for name in scores:
            assert scores[name].tobytes() == b"".join(row[name] for row in alone), (name, length)
        for size in (1, 2, 3, 5, 8, 13, 16, 17, 31):
            for start in (0, 1, 40 - size):
                part = slice(start, start + size)
                for name, result in family.bits(p[part], q[part], **types).items():
                    assert result == scores[name][part].tobytes(), (name, length, part)
        order = rng.permutation(40)
        for name, result in family.bits(p[order], q[order], **types).items():
            assert result == scores[name][order].tobytes(), (name, length)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_one_pair(normalize, type_name, level, rng):
    """Functions of two plain rows, which need no plan, give what they give for a batch of one."""
    family = Weights(normalize)
    for length in (*LENGTHS, 1024, 5000, 70_000):
        p, q, types = family.rows(rng, (14, length), type_name)
        for a, b in zip(p, q, strict=True):
            for name, operands, more in (
                ("kl_divergence", (a, b), {}),
                ("kl_divergence", (a, b), {"base": 2}),
                ("kl_divergence", (a, a), {}),
                ("jeffreys_divergence", (a, b), {}),
                ("js_divergence", (a, b), {"weight": 0.4}),
                ("js_distance", (a, b), {}),
                ("cross_entropy", (a, b), {}),
                ("entropy", (a,), {}),
                ("renyi_divergence", (a, b), {"alpha": 0.7}),
                ("total_variation", (a, b), {}),
                ("hellinger_distance", (a, b), {}),
                ("wasserstein_distance", (a, b), {}),
            ):
                function = getattr(fastkl, name)
                value = function(*operands, normalize=normalize, **more, **types)
                batch = function(*(x[None] for x in operands), normalize=normalize, **more, **types)
                assert type(value) is batch.dtype.type
                assert value.tobytes() == batch.tobytes(), (name, length, more)


def strided(a):
    padded = np.repeat(np.repeat(a, 2, 0), 3, 1)
    padded[:, 1::3] = 7
    return padded[::2, ::3]


def unaligned(a):
    view = np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), 1)
    view[...] = a
    return view


def padded(a):
    wide = np.zeros((len(a), a.shape[1] + 3), a.dtype)
    wide[:, 2:-1] = a
    return wide[:, 2:-1]


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "reversed rows": lambda a: a[::-1].copy()[::-1],
    "reversed bins": lambda a: a[:, ::-1].copy()[:, ::-1],
    "strided": strided,
    "padded": padded,
    "unaligned": unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "byte-swapped fortran": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder())),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@families_that_differ
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 130])
def test_layouts(family, length, type_name, level, rng):
    """Every layout of p with every layout of q."""
    p, q, types = family.rows(rng, (37, length), type_name)
    expected = family.bits(p, q, **types)
    ps, qs = ({kind: layout(a) for kind, layout in LAYOUTS.items()} for a in (p, q))
    for a in ps:
        for b in qs:
            assert family.bits(ps[a], qs[b], **types) == expected, (a, b)


@families_that_differ
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 100, 1000])
def test_axes(family, length, type_name, level, rng):
    """The reduced axis first, last and between, in operands of different numbers of axes."""
    p, q, types = family.rows(rng, (36, length), type_name)
    expected = family.bits(p, q, **types)
    for axis in (0, -2):
        assert family.bits(p.T.copy(), q.T.copy(), axis=axis, **types) == expected
        assert family.bits(p.T, q.T, axis=axis, **types) == expected
        assert family.bits(p.T.copy(), q.T, axis=axis, **types) == expected
    cube_p, cube_q = p.reshape(4, 9, length), q.reshape(4, 9, length)
    for axis in (0, 1, 2):
        a, b = (np.moveaxis(x, -1, axis) for x in (cube_p, cube_q))
        assert family.bits(a, b, axis=axis, **types) == expected
        assert family.bits(a.copy(), b.copy(), axis=axis, **types) == expected
        assert family.bits(a.copy(), np.asfortranarray(b), axis=axis - 3, **types) == expected
    transposed = family.scores(cube_p.transpose(1, 0, 2), cube_q.transpose(1, 0, 2), **types)
    for name, score in transposed.items():
        assert score.swapaxes(0, 1).tobytes() == expected[name]


def few_apart(rng, count, length, type_name):
    """Rows for one pass, zeros among them, but for one in sixteen."""
    p, q = rng.random((2, count, length)) + 0.01
    p[3::7] *= rng.random(p[3::7].shape) < 0.7
    q[5::7] *= rng.random(q[5::7].shape) < 0.5
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    q[9::48] = p[9::48] * (1 + 1e-6 * rng.standard_normal(p[9::48].shape))
    q[20::48] = p[20::48] * 3
    p[33::48, length // 2] = rng.choice([np.nan, np.inf, -1.0, 1e-310])
    return p.astype(type_name), q.astype(type_name)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("length", [32, 33, 39, 64, 66, 100, 127, 256, 257, 264, 520])
def test_columns(length, type_name, level, rng):
    """Many rows side by side across the memory have kernels of their own: see discrete_columns.inl.h. Where many of them
    take two passes they are packed, others or not."""
    for count in (15, 16, 47, 130, 700):
        all_sorts = FAMILIES["normalized"].rows(rng, (count, length), type_name)[:2]
        mostly_plain = few_apart(rng, count, length, type_name)
        mixed = tuple(np.concatenate([x, y, x]) for x, y in zip(mostly_plain, all_sorts, strict=True))
        for p, q in (all_sorts, mostly_plain, mixed):
            p_columns, q_columns = np.ascontiguousarray(p.T), np.ascontiguousarray(q.T)
            for function in (fastkl.kl_divergence, fastkl.js_divergence, fastkl.js_distance):
                expected = function(p, q).tobytes()
                assert function(p_columns, q_columns, axis=0).tobytes() == expected, (function, count)
                assert function(p_columns[None], q_columns[None], axis=1, n_threads=3).tobytes() == expected
                assert function(p_columns, np.asfortranarray(q_columns), axis=0).tobytes() == expected


@families_that_differ
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 130])
def test_broadcasting(family, length, type_name, level, rng):
    """One row against many, both ways, and every row against every other, have the bits of the written-out operands."""
    p, q, types = family.rows(rng, (23, length), type_name)
    many = np.repeat(p[3:4], 23, 0)
    for one in (p[3], p[3:4], np.broadcast_to(p[3], (23, length))):
        assert family.bits(one, q, **types) == family.bits(many, q, **types)
        assert family.bits(q, one, **types) == family.bits(q, many, **types)
        assert family.bits(one, one, **types) == family.bits(*np.broadcast_arrays(one, one), **types)
    every_p, every_q = (x.copy() for x in np.broadcast_arrays(p[:, None], q))
    assert family.bits(p[:, None], q, **types) == family.bits(every_p, every_q, **types)
    columns_p, columns_q = (np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in (p[:, None], q))
    assert family.bits(columns_p, columns_q[:, None], axis=0, **types) == family.bits(every_p, every_q, **types)
    assert family.bits(p[:, None, :].swapaxes(0, 2), q.T[..., None], axis=0, **types) == family.bits(
        every_p.swapaxes(0, 1), every_q.swapaxes(0, 1), **types
    )
    flat = np.broadcast_to(p[:, :1], (23, length))  # a stride of 0 along the row itself
    assert family.bits(flat, q, **types) == family.bits(flat.copy(), q, **types)
    assert family.bits(q, flat, **types) == family.bits(q, flat.copy(), **types)


@pytest.mark.parametrize("type_name", TYPES)
@each_family
def test_avx2_and_avx512_agree(family, type_name):
    """The same bits at both levels, or at the one of them that this CPU has."""
    before = fastkl.simd_level()
    results = []
    try:
        for level in set(_engine.usable_levels()) & {"avx2", "avx512"}:
            fastkl.set_simd_level(level)
            draws = np.random.default_rng(11)
            results.append([])
            for length in (*LENGTHS, 5000, 100_000):
                p, q, types = family.rows(draws, (200 if length <= 1000 else 6, length), type_name)
                if family is not LOGITS:
                    types["positions"] = np.cumsum(draws.random(length))
                results[-1].append(family.bits(p, q, base=3, **types))
    finally:
        fastkl.set_simd_level(before)
    assert all(result == results[0] for result in results)


@families_that_differ
def test_the_same_call_twice(family, level, rng):
    p, q, _ = family.rows(rng, (500, 97), "float64")
    assert family.bits(p, q) == family.bits(p, q)
    a, b = p.copy(), q.copy()
    family.bits(a, b)
    assert a.tobytes() == p.tobytes() and b.tobytes() == q.tobytes()
