"""The examples in the docstrings and in the README give what they say."""

import doctest
import importlib
import pathlib

import pytest

import fastkl

ROOT = pathlib.Path(fastkl.__file__).parents[1]
MODULES = [
    "fastkl",
    "fastkl.discrete",
    "fastkl.gaussian",
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


def test_readme():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README beside it")
    lines = [line for line in readme.read_text(encoding="utf-8").splitlines(True) if not line.startswith("```")]
    example = doctest.DocTestParser().get_doctest("".join(lines), {}, "README", str(readme), 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
