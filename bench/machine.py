"""What a run was made on and with: the stamp of every report."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import fastkl

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = ("fastkl", "numpy", "scipy", "torch", "numba", "numkong", "python-flint", "threadpoolctl")


def stamp() -> dict:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory GiB": _memory_gib(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "level": fastkl.simd_level(),
        "threads": fastkl.get_num_threads(),
        "load at start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("FASTKL_", "OMP_", "GOMP_"))
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": _commit(),
    }


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return getattr(fastkl, "__version__", "absent") if distribution == "fastkl" else "absent"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    model = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        # Virtual machines hide the model's name; family and model still tell the microarchitecture.
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    return model


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, with a ``+`` where files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
