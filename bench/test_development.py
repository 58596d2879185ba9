"""pytest-benchmark cases for development (``make bench``): quick ones, in cache and a little out of it.

They compare two states of the code on one machine; the figures of the contract come from ``python -m bench``.
"""

from __future__ import annotations

import pytest

from bench import cases
from bench.timing import at_level, usable_levels

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=3)


@pytest.fixture(params=usable_levels())
def level(request):
    with at_level(request.param):
        yield request.param


@pytest.mark.parametrize("mib", [0.25, 64], ids=["in cache", "out of cache"])
@pytest.mark.parametrize("kernel", cases.CONTRACT_KERNELS, ids=lambda kernel: kernel.name)
def test_contract_kernel(benchmark, level, kernel, mib):
    pairs = cases.make_pairs(mib, kernel.dtype)
    benchmark.extra_info["elements"] = pairs.elements
    benchmark(kernel.bind(pairs, n_threads=1))


@pytest.mark.parametrize("kernel", cases.OTHER_KERNELS, ids=lambda kernel: kernel.name)
def test_other_kernel(benchmark, kernel):
    pairs = cases.make_pairs(0.25, kernel.dtype, rows=kernel.rows)
    benchmark.extra_info["elements"] = pairs.elements
    benchmark(kernel.bind(pairs, n_threads=1))


@pytest.mark.parametrize("row_length", [2, 3, 5, 10, 16, 50, 100, 128, 1000])
@pytest.mark.parametrize("kernel", cases.CONTRACT_KERNELS[:4], ids=lambda kernel: kernel.name)
def test_row_length(benchmark, kernel, row_length):
    pairs = cases.make_pairs(1, kernel.dtype, row_length)
    benchmark.extra_info["elements"] = pairs.elements
    benchmark(kernel.bind(pairs, n_threads=1))


@pytest.mark.parametrize("kernel", cases.CONTRACT_KERNELS, ids=lambda kernel: kernel.name)
def test_one_pair(benchmark, kernel):
    pairs = cases.make_pairs(0, kernel.dtype, 64)
    benchmark(kernel.bind_operands((pairs.p[0], pairs.q[0])))
