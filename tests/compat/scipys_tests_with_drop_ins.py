"""A pytest plugin for SciPy's own tests: puts the drop-ins in place of what they test, and counts their calls.

It patches before the tests are collected, because some of them take their subject when they are imported.
"""

import functools
import json
import os
from collections import Counter

import scipy.spatial.distance
import scipy.stats
from scipy._lib._array_api import xp_capabilities_table

from fastkl.compat import scipy_distance, scipy_stats

CALLS = Counter()


def counted(name, original, drop_in):
    @functools.wraps(drop_in)
    def call(*args, _no_deco=False, **kwargs):
        if _no_deco:  # with it SciPy's tests ask for the values to compare with
            return original(*args, _no_deco=True, **kwargs)
        CALLS[name] += 1
        return drop_in(*args, **kwargs)

    call.__module__ = __name__  # where pickle finds it
    globals()[name] = call
    if original in xp_capabilities_table:
        xp_capabilities_table[call] = xp_capabilities_table[original]
    return call


for module, drop_ins, names in (
    (scipy.stats, scipy_stats, ["entropy"]),
    (scipy.spatial.distance, scipy_distance, ["jensenshannon", "cdist", "pdist"]),
):
    for name in names:
        setattr(module, name, counted(name, getattr(module, name), getattr(drop_ins, name)))


def pytest_sessionfinish(session):
    with open(os.environ["FASTKL_CALLS_OF_DROP_INS"], "w") as file:
        json.dump({"collected": session.testscollected, "calls": CALLS}, file)
