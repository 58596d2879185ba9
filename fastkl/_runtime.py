"""What runs: the level of the kernels, the number of threads, and why they are what they are.

Everything is read once, at import: the environment, the CPU affinity, the cgroup quota. Afterwards only the level can
change, by :func:`set_simd_level`, and a forked child can find itself to be one.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fastkl._kernels import _engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A parallel region costs some microseconds to enter, about what one thread needs for this many elements.
SERIAL_BELOW = 32_768

# An argument or a variable may ask for more threads than there are CPUs, but not for so many that starting them fails.
_MOST_THREADS = max(64, os.cpu_count() or 1)

_is_forked_child = False


def simd_level() -> str:
    """The level of the kernels in use: ``"baseline"``, ``"avx2"``, ``"avx512"`` or ``"neon"``.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.simd_level() in ("baseline", "avx2", "avx512", "neon")
    True
    """
    return _engine.level()


def set_simd_level(name: str) -> None:
    """Use the kernels of a given level from now on, in all threads.

    Parameters
    ----------
    name : str
        A level that was built and that the CPU can run; ``show_config()`` lists them.

    Raises
    ------
    ValueError
        If the level is unknown, was not built, or is not one of this CPU's.

    Examples
    --------
    >>> import fastkl
    >>> level = fastkl.simd_level()
    >>> fastkl.set_simd_level("baseline")
    >>> fastkl.simd_level()
    'baseline'
    >>> fastkl.set_simd_level(level)
    """
    _engine.set_level(name)


def get_num_threads() -> int:
    """The number of threads that a large call uses when it is made without ``n_threads``.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.get_num_threads() >= 1
    True
    """
    return threads_for(None, SERIAL_BELOW)


def threads_for(n_threads: int | None, n_elements: int) -> int:
    """The number of threads for a call over so many elements, ``n_threads`` at most."""
    # With libgomp, a child forked from a process that has used OpenMP hangs in its first parallel region; and whoever
    # calls from inside a parallel region has spread the CPUs over its own threads already.
    if n_elements < SERIAL_BELOW or _is_forked_child or _engine.in_parallel():
        return 1
    return _DEFAULT_THREADS if n_threads is None else min(n_threads, _MOST_THREADS)


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...


def show_config(mode: str = "stdout") -> dict[str, dict[str, Any]] | None:
    """Show what was built, what runs, how many threads a large call uses, and why.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it, or return it as a dictionary of dictionaries.

    Returns
    -------
    dict or None
        With ``mode="dicts"``, the sections ``"fastkl"``, ``"levels"`` and ``"threads"``.

    Raises
    ------
    ValueError
        If ``mode`` is neither.

    Examples
    --------
    >>> import fastkl
    >>> config = fastkl.show_config(mode="dicts")
    >>> config["levels"]["in use"] == fastkl.simd_level()
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    # The package imports this module before it has a version.
    from fastkl import __version__

    level = simd_level()
    config: dict[str, dict[str, Any]] = {
        "fastkl": {
            "version": __version__,
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "compiler": _engine.compiler(),
            "openmp": _engine.openmp_version() or None,
        },
        "levels": {
            "built": list(_engine.built_levels()),
            "usable": list(_engine.usable_levels()),
            "in use": level,
            "why": _LEVEL_REASON if level == _LEVEL_AT_IMPORT else "set_simd_level()",
        },
        "threads": {
            "default": get_num_threads(),
            "why": "forked from another process" if _is_forked_child else _THREADS_REASON,
        },
    }
    if _IGNORED_VARIABLES:
        config["threads"]["ignored"] = list(_IGNORED_VARIABLES)
    if mode == "dicts":
        return config
    for section, entries in config.items():
        print(f"{section}:")
        for key, value in entries.items():
            shown = ", ".join(value) if isinstance(value, list) else "none" if value is None else value
            print(f"  {key}: {shown}")
    return None


def _level_policy(environ: Mapping[str, str]) -> str:
    """Set the level that the environment asks for; the reason for the one in use."""
    best = "the highest that was built and that this CPU has"
    name = environ.get("FASTKL_SIMD", "").strip().lower()
    if not name:
        return best
    try:
        _engine.set_level(name)
    except ValueError:
        usable = ", ".join(_engine.usable_levels())
        problem = f"FASTKL_SIMD={name} is ignored, for the usable levels are {usable}"
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
        return f"{best}; {problem}"
    return f"FASTKL_SIMD={name}"


def _thread_policy(environ: Mapping[str, str]) -> tuple[int, str, tuple[str, ...]]:
    """The number of threads by default, the reason for it, and the variables that made no sense."""
    if not _engine.openmp_version():
        return 1, "built without OpenMP", ()
    ignored: list[str] = []
    for variable in ("FASTKL_NUM_THREADS", "OMP_NUM_THREADS"):
        text = environ.get(variable, "")
        if not text.strip():
            continue
        try:
            # OMP_NUM_THREADS may be a list with an entry for each level of nested parallel regions.
            number = int(text.split(",")[0])
        except ValueError:
            number = 0
        if number >= 1:
            return min(number, _MOST_THREADS), f"{variable}={text}", tuple(ignored)
        ignored.append(f"{variable}={text}")
    cpus = _cpus_allowed()
    quota = _cgroup_quota()
    if quota < cpus:
        return max(1, math.ceil(quota)), f"a cgroup quota of {quota:g} CPUs", tuple(ignored)
    return cpus, "the CPUs that this process may run on", tuple(ignored)


def _cpus_allowed() -> int:
    """The number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1


def _cgroup_quota(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> float:
    """How many CPUs' time the control groups of this process grant it; inf where nothing limits it."""
    quota = math.inf
    try:
        with open(membership) as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if controllers == "":
                    quota = min(quota, *(_quota_v2(folder) for folder in _with_parents(mount, path)))
                elif "cpu" in controllers.split(","):
                    quota = min(quota, *(_quota_v1(folder) for folder in _with_parents(f"{mount}/cpu", path)))
    except (OSError, ValueError):
        pass
    return quota


def _with_parents(root: str, path: str) -> Iterator[str]:
    """The folder of a control group and of those around it: each can limit it.

    In a container the path can be the host's, of which only the root is there to be read.
    """
    while path.strip("/"):
        yield root + path
        path = os.path.dirname(path)
    yield root


def _quota_v2(folder: str) -> float:
    try:
        with open(f"{folder}/cpu.max") as file:
            quota, period = file.read().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder: str) -> float:
    try:
        with open(f"{folder}/cpu.cfs_quota_us") as quota_file, open(f"{folder}/cpu.cfs_period_us") as period_file:
            quota, period = int(quota_file.read()), int(period_file.read())
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def _mark_forked_child() -> None:
    global _is_forked_child
    _is_forked_child = True


_LEVEL_REASON = _level_policy(os.environ)
_LEVEL_AT_IMPORT = _engine.level()
_DEFAULT_THREADS, _THREADS_REASON, _IGNORED_VARIABLES = _thread_policy(os.environ)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked_child)
