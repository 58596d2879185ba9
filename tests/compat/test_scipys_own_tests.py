"""SciPy's own tests of what the drop-ins stand in for, run with the drop-ins in its place."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import fastkl

pytest.importorskip("scipy")

HERE = pathlib.Path(__file__).parent
PACKAGE = pathlib.Path(fastkl.__file__).parent.parent

MODULES = (
    "scipy.stats.tests.test_entropy",
    "scipy.stats.tests.test_axis_nan_policy",
    "scipy.spatial.tests.test_distance",
)

# All of Jensen-Shannon and of the entropy, every policy for NaN included; and some of what must go to SciPy unharmed.
CHOSEN = (
    "TestEntropy or jensenshannon or (entropy and axis_nan_policy and not differential) or custom or pdist_euclidean"
)


def test_scipys_own_tests(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # not this project's settings
    calls = tmp_path / "calls"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pytest.ini", "--rootdir=.", "-q", "-p", "no:cacheprovider"]
        + ["-p", "scipys_tests_with_drop_ins", "-k", CHOSEN, "--pyargs", *MODULES],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(HERE), str(PACKAGE)]), "FASTKL_CALLS_OF_DROP_INS": str(calls)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    counted = json.loads(calls.read_text())
    # SciPy 1.17 has 15 + 48 + 33 of these tests; other versions may have some less.
    assert counted["collected"] >= 80
    assert all(counted["calls"][name] > 20 for name in ("entropy", "jensenshannon", "cdist", "pdist")), counted
