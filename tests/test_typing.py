"""The annotations: the stubs say what the compiled modules are, and the package passes mypy in its strictest mode."""

import importlib.machinery
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import fastkl._kernels

ROOT = pathlib.Path(fastkl.__file__).parent.parent
COMPILED = [
    module.name
    for module in pkgutil.iter_modules(fastkl._kernels.__path__)
    if isinstance(
        module.module_finder.find_spec(module.name).loader,
        importlib.machinery.ExtensionFileLoader,
    )
]


def run(tool, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(cwd / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_compiled_module_has_a_stub():
    assert COMPILED
    folder = pathlib.Path(fastkl._kernels.__path__[0])
    assert sorted(path.stem for path in folder.glob("*.pyi")) == sorted(COMPILED)


def test_stubs_match_the_code(tmp_path):
    names = [f"fastkl._kernels.{name}" for name in COMPILED]
    # What Cython adds to a module for its own use.
    (tmp_path / "allowed").write_text(r".*\.__(test|pyx_capi)__")
    checked = run("mypy.stubtest", "--allowlist", "allowed", "--ignore-unused-allowlist", *names, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(("fastkl", "fastkl.reference"), id="fastkl"),
        pytest.param(("fastkl.jax",), id="jax"),
    ],
)
def test_package(modules, tmp_path):
    if modules == ("fastkl.jax",):
        pytest.importorskip("jax")
    checked = run("mypy", "--strict", *(f"--module={name}" for name in modules), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_package_is_marked_as_typed():
    assert (ROOT / "fastkl" / "py.typed").exists()


# Each a line of a program, with the kind of error that mypy must find in it.
CALLS = {
    "fastkl.kl_divergence([0.5, 0.5], [0.25, 0.75])": None,
    "fastkl.kl_divergence(x, x, base=2, axis=0, keepdims=True, out=x, n_threads=2, invalid='raise')[0]": None,
    "float(fastkl.js_distance(x, x, weight=0.25))": None,
    "fastkl.entropy(x).mean()": None,
    "fastkl.score(x, x, ['kl', 'renyi'], alpha=2)['kl'].max()": None,
    "fastkl.kl_estimate(x, -1.0, kind='k1', out=x).mean()": None,
    "float(fastkl.clipped_ratio_objective(-1, -2, 0.5, clip=0.1))": None,
    "fastkl.score_from_logits(x, x, ['kl', 'top1_agreement'], temperature=2)['kl'].max()": None,
    "fastkl.distillation_loss(x, x, reduction='none').mean()": None,
    "fastkl.distillation_loss(x, x, return_grad=True)[1].sum(axis=0)": None,
    "fastkl.distillation_loss(x, x, reduction='mean')": "call-overload",
    "fastkl.kl_divergence_from_logits(x, x, normalize=False)": "call-arg",
    "fastkl.show_config('dicts')['threads']['default']": None,
    "fastkl.kl_divergence(x)": "call-arg",
    "fastkl.kl_divergence(x, x, True)": "call-arg",
    "fastkl.kl_divergence(x, x, invalid='ignore')": "arg-type",
    "fastkl.kl_divergence(x, x, axis=None)": "arg-type",
    "fastkl.total_variation(x, x, base=2)": "call-arg",
    "fastkl.renyi_divergence(x, x)": "call-arg",
    "fastkl.kl_estimate(x, x, 'k1')": "call-arg",
    "fastkl.kl_estimate(x, x, kind='k4')": "arg-type",
}


def test_calls(tmp_path):
    lines = ["import numpy as np", "import fastkl", "x = np.ones((2, 2))", *CALLS]
    (tmp_path / "caller.py").write_text("\n".join(lines))
    checked = run("mypy", "--strict", "--follow-imports=silent", "caller.py", cwd=tmp_path)
    found = re.findall(r"^caller\.py:(\d+): error: .* \[(.+)\]$", checked.stdout, re.MULTILINE)
    expected = [(number, kind) for number, kind in enumerate(CALLS.values(), start=4) if kind]
    assert [(int(number), kind) for number, kind in found] == expected, checked.stdout + checked.stderr
