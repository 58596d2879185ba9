"""A row's result depends on its values alone: not on threads, batch, layout, or which of avx2 and avx512 runs."""

import numpy as np
import pytest
from oracles import METRICS, bfloat16_bits

import fastkl
from fastkl._kernels import _engine

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 1000)
TYPES = ("float64", "float32", "float16", "bfloat16", "int32")


def rows(rng, shape, type_name):
    """A pair of operands of all sorts of rows, and the options that the type needs."""
    p, q = rng.random((2, *shape)) + 0.01
    q[1::7] = p[1::7] * (1 + 1e-4 * rng.standard_normal(p[1::7].shape))
    q[2::7] = p[2::7]
    p[3::7] *= rng.random(p[3::7].shape) < 0.7
    p[4::7] **= 30
    q[5::7] *= rng.random(q[5::7].shape) < 0.5
    if type_name.startswith("float"):  # a NaN must not hide its neighbours' zeros and negative numbers
        q[6::7][..., 0] = np.nan
        p[10::13][..., -1] = -1
    if type_name == "bfloat16":
        return bfloat16_bits(p), bfloat16_bits(q), {"dtype": "bfloat16"}
    scale = 1000 if type_name == "int32" else 1
    return (p * scale).astype(type_name), (q * scale).astype(type_name), {}


def bits(p, q, **options):
    """The results of all metrics as one string of bytes for each."""
    scores = fastkl.score(p, q, METRICS, alpha=0.7, weight=0.4, **options)
    return {name: np.asarray(score).tobytes() for name, score in scores.items()}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(30_000, 3), (4_000, 17), (700, 64), (70, 1000), (3, 40_000), (1, 100_000)], ids=str)
def test_threads(shape, type_name, level, rng):
    p, q, types = rows(rng, shape, type_name)
    expected = bits(p, q, n_threads=1, **types)
    for n_threads in (None, 2, 3, 5):
        assert bits(p, q, n_threads=n_threads, **types) == expected, n_threads


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
def test_batch(normalize, type_name, level, rng):
    """Alone, at each place of batches of every size up to 40, and among other neighbours."""
    for length in LENGTHS:
        p, q, types = rows(rng, (40, length), type_name)
        types["normalize"] = normalize
        scores = fastkl.score(p, q, METRICS, alpha=0.7, weight=0.4, **types)
        alone = [bits(a, b, **types) for a, b in zip(p, q, strict=True)]
        for name in METRICS:
            assert scores[name].tobytes() == b"".join(row[name] for row in alone), (name, length)
        for size in (1, 2, 3, 5, 8, 13, 16, 17, 31):
            for start in (0, 1, 40 - size):
                part = slice(start, start + size)
                for name, result in bits(p[part], q[part], **types).items():
                    assert result == scores[name][part].tobytes(), (name, length, part)
        order = rng.permutation(40)
        for name, result in bits(p[order], q[order], **types).items():
            assert result == scores[name][order].tobytes(), (name, length)


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


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 130])
def test_layouts(length, type_name, level, rng):
    """Every layout of p with every layout of q."""
    p, q, types = rows(rng, (37, length), type_name)
    expected = bits(p, q, **types)
    ps, qs = ({kind: layout(a) for kind, layout in LAYOUTS.items()} for a in (p, q))
    for a in ps:
        for b in qs:
            assert bits(ps[a], qs[b], **types) == expected, (a, b)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 100, 1000])
def test_axes(length, type_name, level, rng):
    """The reduced axis first, last and between, in operands of different numbers of axes."""
    p, q, types = rows(rng, (36, length), type_name)
    expected = bits(p, q, **types)
    for axis in (0, -2):
        assert bits(p.T.copy(), q.T.copy(), axis=axis, **types) == expected
        assert bits(p.T, q.T, axis=axis, **types) == expected
        assert bits(p.T.copy(), q.T, axis=axis, **types) == expected
    cube_p, cube_q = p.reshape(4, 9, length), q.reshape(4, 9, length)
    for axis in (0, 1, 2):
        a, b = (np.moveaxis(x, -1, axis) for x in (cube_p, cube_q))
        assert bits(a, b, axis=axis, **types) == expected
        assert bits(a.copy(), b.copy(), axis=axis, **types) == expected
        assert bits(a.copy(), np.asfortranarray(b), axis=axis - 3, **types) == expected
    transposed = fastkl.score(cube_p.transpose(1, 0, 2), cube_q.transpose(1, 0, 2), ("kl",), **types)["kl"]
    assert transposed.T.tobytes() == expected["kl"]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 17, 33, 130])
def test_broadcasting(length, type_name, level, rng):
    """One row against many, both ways, and every row against every other, have the bits of the written-out operands."""
    p, q, types = rows(rng, (23, length), type_name)
    many = np.repeat(p[3:4], 23, 0)
    for one in (p[3], p[3:4], np.broadcast_to(p[3], (23, length))):
        assert bits(one, q, **types) == bits(many, q, **types)
        assert bits(q, one, **types) == bits(q, many, **types)
        assert bits(one, one, **types) == bits(*np.broadcast_arrays(one, one), **types)
    every_p, every_q = (x.copy() for x in np.broadcast_arrays(p[:, None], q))
    assert bits(p[:, None], q, **types) == bits(every_p, every_q, **types)
    columns_p, columns_q = (np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in (p[:, None], q))
    assert bits(columns_p, columns_q[:, None], axis=0, **types) == bits(every_p, every_q, **types)
    assert bits(p[:, None, :].swapaxes(0, 2), q.T[..., None], axis=0, **types) == bits(
        every_p.swapaxes(0, 1), every_q.swapaxes(0, 1), **types
    )
    flat = np.broadcast_to(p[:, :1], (23, length))  # a stride of 0 along the row itself
    assert bits(flat, q, **types) == bits(flat.copy(), q, **types)
    assert bits(q, flat, **types) == bits(q, flat.copy(), **types)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
def test_avx2_and_avx512_agree(normalize, type_name):
    """The same bits at both levels, or at the one of them that this CPU has."""
    before = fastkl.simd_level()
    results = []
    try:
        for level in set(_engine.usable_levels()) & {"avx2", "avx512"}:
            fastkl.set_simd_level(level)
            draws = np.random.default_rng(11)
            results.append([])
            for length in (*LENGTHS, 5000, 100_000):
                p, q, types = rows(draws, (200 if length <= 1000 else 6, length), type_name)
                positions = np.cumsum(draws.random(length))
                results[-1].append(bits(p, q, normalize=normalize, positions=positions, base=3, **types))
    finally:
        fastkl.set_simd_level(before)
    assert all(result == results[0] for result in results)


def test_the_same_call_twice(level, rng):
    p, q, _ = rows(rng, (500, 97), "float64")
    assert bits(p, q) == bits(p, q)
    a, b = p.copy(), q.copy()
    bits(a, b)
    assert a.tobytes() == p.tobytes() and b.tobytes() == q.tobytes()
