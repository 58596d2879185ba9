"""What the tests of the drop-in namespaces share: an original and its drop-in are called alike and compared."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Outcome:
    """What a call did: the value it returned or the exception it raised, and the warnings it gave."""

    value: Any
    error: BaseException | None
    warnings: list[tuple[type[Warning], str]]


def outcome(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = error = None
        try:
            value = function(*args, **kwargs)
        except Exception as raised:
            error = raised
    return Outcome(value, error, [(item.category, str(item.message)) for item in caught])


def assert_alike(original, drop_in, *args, rtol, atol=0.0, **kwargs):
    """The same value to within the original's own error, which rtol and atol bound, and otherwise the same outcome."""
    theirs, ours = outcome(original, *args, **kwargs), outcome(drop_in, *args, **kwargs)
    assert type(ours.error) is type(theirs.error), f"{ours.error!r} instead of {theirs.error!r}"
    if theirs.error is not None:
        assert str(ours.error) == str(theirs.error)
    assert ours.warnings == theirs.warnings
    assert type(ours.value) is type(theirs.value)
    if theirs.value is not None:
        assert np.shape(ours.value) == np.shape(theirs.value)
        assert np.result_type(ours.value) == np.result_type(theirs.value)
        np.testing.assert_allclose(ours.value, theirs.value, rtol=rtol, atol=atol)
