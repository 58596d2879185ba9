"""Every build decision of fastkl: OpenMP, the levels and their flags, warnings. The rest is in pyproject.toml.

The row kernels are compiled once per level, each into a folder of its own (a build tool that finds a level's object
under another level's name would link the wrong code), and linked into the extension `_engine`. No other file gets a
flag that names an instruction set, so the package imports on any CPU of the architecture.

FASTKL_OPENMP=0 builds without OpenMP, FASTKL_OPENMP=1 refuses to build without it; FASTKL_WERROR=1 turns compiler
warnings into errors.
"""

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("fastkl/_kernels")
SOURCE = KERNELS / "src"

# -ffp-contract=off: fused multiply-adds stand in the source, so that levels agree bit for bit. Nothing that lets the
# compiler assume finite numbers or reorder sums, and nothing of the kind at link time either: -ffast-math there turns
# subnormal numbers off for the whole process. -g0: what Python was built with would add debugging symbols, 38 MB of them.
C_FLAGS = ["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# Scheduling before registers are allotted: a few per cent with the 32 registers of AVX-512, a loss with 16.
SCHEDULING = ["-fschedule-insns", "-fsched-pressure"]
LEVELS = {
    "x86": {
        "baseline": [],
        "avx2": AVX2,
        "avx512": [*AVX512, *SCHEDULING],
    },
    "arm": {"neon": []},
    "other": {"baseline": []},
}
# What is compiled once for all levels: the code for rows that the kernels leave alone.
CAREFUL = ("careful.c", "careful_elementwise.c", "careful_gaussian.c", "careful_logits.c")


def family():
    machine = platform.machine().lower()
    if machine in {"x86_64", "amd64", "i686", "i386"}:
        return "x86"
    return "arm" if machine in {"aarch64", "arm64"} else "other"


class BuildExtensions(build_ext):
    """Compile the levels, find out about OpenMP, then build the extensions as usual."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("fastkl needs GCC or Clang")
        openmp = self.openmp_flags()
        warnings = ["-Werror"] if os.environ.get("FASTKL_WERROR") == "1" else []
        levels = {}
        for name, flags in LEVELS[family()].items():
            flags = [flag for flag in flags if flag not in SCHEDULING or self.accepts([flag])]
            if self.accepts(flags):
                levels[name] = flags
        for extension in self.extensions:
            extension.extra_compile_args += openmp
            extension.extra_link_args += openmp
            if extension.name.endswith("._engine"):
                extension.extra_objects += self.compile_levels(levels, [*C_FLAGS, *warnings])
        super().build_extensions()

    def compile_levels(self, levels, flags):
        """The objects of all levels, of the code for rare rows, and of the table of what there is."""
        units = [(name, f"level_{name}.c", extra, []) for name, extra in levels.items()]
        units += [("common", name, [], []) for name in CAREFUL]
        units.append(("common", "cpu.c", [], [(f"FASTKL_HAVE_{name.upper()}", None) for name in levels]))
        newest_header = max(path.stat().st_mtime for path in [Path(__file__), *SOURCE.glob("*.h")])

        def compile_unit(unit):
            folder, source, extra, macros = unit
            known = Path(self.build_temp, "levels", folder, SOURCE, source).with_suffix(".o")
            if known.exists() and known.stat().st_mtime > max(newest_header, (SOURCE / source).stat().st_mtime):
                return [str(known)]
            return self.compiler.compile(
                [str(SOURCE / source)],
                output_dir=os.path.join(self.build_temp, "levels", folder),
                macros=macros,
                include_dirs=[str(SOURCE)],
                extra_postargs=[*flags, *extra, "-fPIC"],
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler of its own
            return [path for paths in pool.map(compile_unit, units) for path in paths]

    def accepts(self, flags):
        """Does the compiler take these flags?"""
        return self.compiles("int main(void) { return 0; }\n", flags)

    def openmp_flags(self):
        wish = os.environ.get("FASTKL_OPENMP", "")
        if wish == "0":
            return []
        program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        if self.compiles(program, ["-fopenmp"]):
            return ["-fopenmp"]
        if wish == "1":
            raise SystemExit("FASTKL_OPENMP=1, but the compiler can't build an OpenMP program")
        print("fastkl: no OpenMP here; the build will use one thread", file=sys.stderr)
        return []

    def compiles(self, program, flags):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            command = [*self.compiler.compiler, *flags, str(source), "-o", str(source.with_suffix(""))]
            return subprocess.run([*command, "-Werror"], capture_output=True).returncode == 0


def extension(name):
    return Extension(
        f"fastkl._kernels.{name}",
        [str(KERNELS / f"{name}.pyx")],
        include_dirs=[str(SOURCE), numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
        depends=[str(path) for path in SOURCE.glob("*.[ch]")],
        extra_compile_args=["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"],
    )


if __name__ == "__main__":  # so that the tests can import the flags
    setup(
        ext_modules=cythonize(
            [extension("_engine"), extension("_batch"), extension("_elementwise")],
            build_dir="build/cython",
            compiler_directives={"language_level": 3},
        ),
        cmdclass={"build_ext": BuildExtensions},
    )
