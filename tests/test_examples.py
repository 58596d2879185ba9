"""The examples in the docstrings and in the README give what they say, and the scripts among them run to their end."""

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import fastkl

ROOT = pathlib.Path(fastkl.__file__).parents[1]
MODULES = [
    "fastkl",
    "fastkl.discrete",
    "fastkl.gaussian",
    "fastkl.logits",
    "fastkl.policy",
    "fastkl.reference",
    "fastkl._runtime",
    "fastkl._summary",
    "fastkl._npyfile",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", fastkl.__all__)
def test_public_functions_have_an_example(name):
    function = getattr(fastkl, name)
    if callable(function):
        assert doctest.DocTestFinder().find(function, name)[0].examples


@pytest.mark.parametrize("package", [None, "dask", "jax", "pandas", "torch", "xarray"])
def test_readme(package):
    """The examples that need no package but NumPy and SciPy, in their order; then those that import one more, each by
    itself."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README beside it")
    if package is not None:
        pytest.importorskip(package)
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    others = {block: re.findall(r"import (dask|jax|pandas|torch|xarray)\b", block)[-1:] for block in blocks}
    chosen = [block for block, other in others.items() if other == ([] if package is None else [package])]
    assert chosen
    for text in ["".join(chosen)] if package is None else chosen:
        example = doctest.DocTestParser().get_doctest(text, {}, "README", str(readme), 0)
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0


# They assert what they claim. What one needs beyond the dependencies of the other tests stands in its id.
SCRIPTS = [
    pytest.param("forward_reverse"),
    pytest.param("vae_digits", id="vae_digits-torch"),
    pytest.param("quantisation"),
]


def test_scripts_are_all_here():
    folder = ROOT / "examples"
    if not folder.exists():
        pytest.skip("an installed package has no examples beside it")
    assert sorted(path.stem for path in folder.glob("*.py")) == sorted(script.values[0] for script in SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name, tmp_path):
    script = ROOT / "examples" / f"{name}.py"
    if not script.exists():
        pytest.skip("an installed package has no examples beside it")
    if name == "vae_digits":
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, script, f"{name}-picture.png", "--folder", tmp_path / "new"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    picture = tmp_path / "new" / f"{name}-picture.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in done.stdout
