# cython: language_level=3, boundscheck=False, freethreading_compatible=True
"""The levels of this build: which there are, which the CPU can run, which one is in force.

The one piece of state is the pointer to the level in force. It is read once per call, and changed only by `set_level`.
"""

import numpy as np

cdef const fkl_level *_active = NULL


cdef const fkl_level *active_level() noexcept nogil:
    return _active


def built_levels():
    """The names of the levels compiled into this build, lowest first."""
    names = []
    cdef int i = 0
    while fkl_levels[i] != NULL:
        names.append(fkl_levels[i].name.decode())
        i += 1
    return tuple(names)


def usable_levels():
    """Those of `built_levels` that this CPU and operating system can run."""
    return tuple(name for name in built_levels() if fkl_level_usable(name.encode()))


def level():
    """The name of the level in force."""
    return _active.name.decode()


def set_level(str name):
    """Put a level in force; ValueError if it is not one of `usable_levels`."""
    global _active
    cdef int i = 0
    if name not in usable_levels():
        raise ValueError(f"level {name!r} can't run here; usable are {', '.join(usable_levels())}")
    while fkl_levels[i].name.decode() != name:
        i += 1
    _active = fkl_levels[i]


def openmp_version():
    """The date of the OpenMP specification this was built with, as yyyymm; 0 without OpenMP."""
    return fkl_openmp_version()


def in_parallel():
    """Is the caller inside an OpenMP parallel region (of the OpenMP library that fastkl uses)?"""
    return bool(fkl_in_parallel())


def compiler():
    """The compiler this was built with."""
    return COMPILER.decode()


def probe(int function, a, b):
    """One of the functions of src/vmath.h (enum fkl_probe) over float64 arrays, at the level in force; for tests."""
    cdef const double[::1] x = np.ascontiguousarray(a, dtype=np.float64)
    cdef const double[::1] y = np.ascontiguousarray(b, dtype=np.float64)
    if x.shape[0] != y.shape[0] or x.shape[0] % 16:
        raise ValueError(f"two arrays of one length, a multiple of 16: got {x.shape[0]} and {y.shape[0]}")
    result = np.empty(x.shape[0])
    cdef double[::1] z = result
    if x.shape[0]:
        _active.probe(function, x.shape[0], &x[0], &y[0], &z[0])
    return result


cdef extern from *:
    """
    #if defined(__clang__)
    #define FKL_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FKL_COMPILER "gcc " __VERSION__
    #else
    #define FKL_COMPILER "unknown compiler"
    #endif
    """
    const char *COMPILER "FKL_COMPILER"

set_level(usable_levels()[-1])
