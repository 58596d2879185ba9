"""What the tests share: every numerical test runs at every level that this CPU has."""

import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastkl
from fastkl._kernels import _engine

# The same examples in every run. (The level, which a fixture sets, is not meant to change between examples.)
settings.register_profile(
    "fastkl",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastkl")


@pytest.fixture(params=_engine.usable_levels())
def level(request):
    before = fastkl.simd_level()
    fastkl.set_simd_level(request.param)
    yield request.param
    fastkl.set_simd_level(before)


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test function alone, so that every level sees the same rows."""
    return np.random.default_rng(zlib.crc32(request.function.__name__.encode()))
