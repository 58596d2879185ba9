"""Make the project's own environment and install what ``pyproject.toml`` lists for building and for the given groups.

    python3 scripts/environment.py DIRECTORY [GROUP ...]

It starts from what a fresh machine has. A Python without ``ensurepip`` (Debian without python3-venv) lends its pip to
the new environment; a pip that must not touch the system (PEP 668) is never asked to; a Python that is too old, or has
no headers to compile against, gives way to a better one on the PATH. Runs, up to that point, on any Python from 3.7.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

OLDEST = ("3", "11")
NAMES = ["python3.13", "python3.12", "python3.11", "python3.14", "python3"]
PIP_INSTALL = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]

# Prints what the Python that runs it lacks, nothing if it will do.
LACKS = """
import importlib.util, os, sys, sysconfig
def has(module):
    return importlib.util.find_spec(module) is not None
if list(sys.version_info[:2]) < [int(number) for number in sys.argv[1:]]:
    print("is Python", ".".join(map(str, sys.version_info[:2])) + ";", ".".join(sys.argv[1:]), "or newer is needed")
elif not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("has no Python.h; on Debian: apt-get install python3-dev")
elif not has("venv") or not (has("ensurepip") or has("pip")):
    print("has neither ensurepip nor pip; on Debian: apt-get install python3-venv")
"""


def main(directory, groups):
    lacking = lacks(sys.executable)
    if lacking:
        better = next((path for path in map(shutil.which, NAMES) if path and not lacks(path)), None)
        if better is None:
            raise SystemExit(f"error: {sys.executable} {lacking}")
        print(f"{sys.executable} {lacking}: taking {better}", flush=True)
        os.execv(better, [better, __file__, directory, *groups])
    check_compiler()
    python = os.path.join(directory, "bin", "python")
    if not succeeds([python, "-c", "import pip"]):
        create(directory, python)
    requirements = listed(groups)
    print(f"installing into {directory}: {', '.join(requirements)}", flush=True)
    run([python, *PIP_INSTALL, *requirements])


def lacks(python):
    """What this Python lacks for our purpose, as the end of a sentence, or an empty string."""
    try:
        return subprocess.check_output([python, "-c", LACKS, *OLDEST], stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):  # such as a shim of pyenv for a version that is not active
        return "does not run"


def check_compiler():
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(f"error: there is no C compiler {compiler}; on Debian: apt-get install gcc")


def create(directory, python):
    """A new virtual environment with pip in it."""
    print(f"creating {directory} with {sys.executable}", flush=True)
    if succeeds([sys.executable, "-c", "import ensurepip"]):
        run([sys.executable, "-m", "venv", "--clear", directory])
        return
    run([sys.executable, "-m", "venv", "--clear", "--without-pip", directory])
    print_packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", print_packages], text=True).strip()
    run([sys.executable, *PIP_INSTALL, "--target", packages, "pip"])


def listed(groups):
    """The requirements for building and running, and those of the groups."""
    import tomllib

    with open(os.path.join(os.path.dirname(__file__), os.pardir, "pyproject.toml"), "rb") as file:
        settings = tomllib.load(file)
    requirements = settings["build-system"]["requires"] + settings["project"]["dependencies"]
    for group in groups:
        requirements += settings["project"]["optional-dependencies"][group]
    return sorted(set(requirements))


def succeeds(command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def run(command):
    status = subprocess.run(command).returncode
    if status:
        raise SystemExit(f"error: {' '.join(command)} ended with status {status}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
