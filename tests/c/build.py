"""Build harness.c with all levels of a processor family, each with the flags that setup.py gives it.

    python tests/c/build.py FAMILY PROGRAM COMPILER [FLAG ...]

FAMILY is one of setup.LEVELS; the flags come after those of setup.py, so that they win. Objects are left beside
PROGRAM.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "fastkl" / "_kernels" / "src"

sys.path.insert(0, str(ROOT))
import setup


def main(family, program, *compiler):
    program = Path(program)
    program.parent.mkdir(parents=True, exist_ok=True)
    levels = setup.LEVELS[family]
    units = {f"level_{name}": (SOURCE / f"level_{name}.c", flags) for name, flags in levels.items()}
    units |= {Path(name).stem: (SOURCE / name, []) for name in setup.CAREFUL}
    units["cpu"] = (SOURCE / "cpu.c", [f"-DFASTKL_HAVE_{name.upper()}" for name in levels])
    units["harness"] = (ROOT / "tests" / "c" / "harness.c", [])

    def compile_unit(name):
        source, flags = units[name]
        target = f"{program}.{name}.o"
        flags = [*setup.C_FLAGS, "-Werror", f"-I{SOURCE}", *flags, *compiler[1:]]
        run(compiler[0], *flags, "-c", str(source), "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, units))
    run(*compiler, *objects, "-lm", "-o", str(program))


def run(*command):
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None  # the compiler has said why
