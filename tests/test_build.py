"""What a build consists of: the instructions of each level, what it calls and exports, its flags, and lesser compilers.

Vector code that a compiler has quietly turned into scalar loops gives right results slowly, and an instruction of a
higher level outside that level's code is a crash on somebody else's machine: neither shows in other tests.
"""

import collections
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import stat
import subprocess
import sys

import pytest

import fastkl
from fastkl._kernels import _batch, _engine

ROOT = pathlib.Path(fastkl.__file__).parents[1]
EXTENSIONS = [_engine.__file__, _batch.__file__]

needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux", reason="reads x86-64 object code in ELF"
)

# What the vectors of a level are called in the object code.
REGISTER = {"baseline": "%xmm", "avx2": "%ymm", "avx512": "%zmm"}
PACKED_DOUBLE_DIVISION = {"baseline": "divpd", "avx2": "vdivpd", "avx512": "vdivpd"}


def output(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def functions():
    """The object code of `_engine`: {source file: {function: [(instruction, operands)]}}, other files under ""."""
    listing = output("readelf", "--symbols", "--wide", _engine.__file__)
    names, source = {}, ""
    for line in listing[listing.find(".symtab") :].splitlines():
        fields = line.split()
        # Number, value, size, type, binding, visibility, section, name. Local symbols follow the name of their file.
        if len(fields) == 8 and fields[3] == "FILE":
            source = fields[7]
        elif len(fields) == 8 and fields[3] == "FUNC" and fields[6] != "UND":
            names[int(fields[1], 16)] = (source if fields[4] == "LOCAL" else "", fields[7])
    if not names:
        pytest.skip("this build has been stripped of its symbols")
    code = collections.defaultdict(lambda: collections.defaultdict(list))
    where = ("", "")
    for line in output("objdump", "--disassemble", "--no-show-raw-insn", "--wide", _engine.__file__).splitlines():
        start = re.match(r"([0-9a-f]+) <(.+)>:$", line)
        if start:
            where = names.get(int(start[1], 16), ("", start[2]))
        elif ":\t" in line:
            instruction, _, operands = line.split(":\t", 1)[1].strip().partition(" ")
            code[where[0]][where[1]].append((instruction, operands.strip()))
    return code


def level_code(functions, level):
    # Packing rows of integers converts them one by one, as it should.
    packing = ("pack", "convert")
    arithmetic = [lines for name, lines in functions[f"level_{level}.c"].items() if not name.startswith(packing)]
    found = [line for lines in arithmetic for line in lines]
    assert found, f"the build has no code of level {level}"
    return found


def count(code, mnemonic, register=""):
    return sum(instruction == mnemonic and register in operands for instruction, operands in code)


@needs_x86
class TestObjectCode:
    @pytest.mark.parametrize("level", REGISTER)
    def test_divisions_are_packed(self, functions, level):
        # Every term of KL and JS has one division. What is left scalar is what happens once in a row.
        if level not in _engine.built_levels():
            pytest.skip(f"built without {level}, which this compiler doesn't know")
        code = level_code(functions, level)
        packed = count(code, PACKED_DOUBLE_DIVISION[level], REGISTER[level])
        scalar = count(code, PACKED_DOUBLE_DIVISION[level].replace("pd", "sd"))
        assert packed >= 40
        assert scalar <= packed / 4
        if level != "baseline":  # has no float kernels
            assert count(code, "vdivps", REGISTER[level]) >= 10
            assert count(code, "vdivss") == 0

    @pytest.mark.parametrize("level", [level for level in REGISTER if level != "baseline"])
    def test_octaves_are_packed(self, functions, level):
        # The octave k goes from an integer to a floating-point number in every term: the conversion that compilers
        # leave in scalar loops, here for floats in one instruction and for doubles by an integer shift into the
        # mantissa (AVX2) or in one instruction (AVX-512).
        if level not in _engine.built_levels():
            pytest.skip(f"built without {level}, which this compiler doesn't know")
        code = level_code(functions, level)
        assert count(code, "vcvtdq2ps", REGISTER[level]) >= 10
        assert count(code, "vcvtqq2pd" if level == "avx512" else "vpsrlq", REGISTER[level]) >= 40
        assert not [instruction for instruction, _ in code if instruction.startswith("vcvtsi2ss")]

    @pytest.mark.parametrize("level", [level for level in REGISTER if level != "baseline"])
    def test_multiply_adds_are_fused(self, functions, level):
        if level not in _engine.built_levels():
            pytest.skip(f"built without {level}, which this compiler doesn't know")
        code = level_code(functions, level)
        fused = [line for line in code if re.match(r"vfn?m(add|sub)\d+p[ds]$", line[0]) and REGISTER[level] in line[1]]
        assert len(fused) >= 500

    def test_no_level_uses_a_higher_ones_instructions(self, functions):
        for source, found in functions.items():
            level = source.removeprefix("level_").removesuffix(".c")
            for name, code in found.items():
                if level != "avx512":
                    wrong = [line for line in code if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|\{%k", line[1])]
                    assert not wrong, f"AVX-512 in {name} of {source or 'another file'}: {wrong[:3]}"
                if level not in ("avx2", "avx512"):
                    wrong = [line for line in code if re.match(r"v[a-z]", line[0]) and "mm" in line[1]]
                    assert not wrong, f"AVX in {name} of {source or 'another file'}: {wrong[:3]}"

    def test_levels_call_no_library_mathematics(self, functions):
        for level in _engine.built_levels():
            called = {
                target[1]
                for instruction, operands in level_code(functions, level)
                if instruction.startswith(("call", "jmp")) and (target := re.search(r"<(\w+)@plt>", operands))
            }
            assert called <= {"memcpy", "memmove", "memset", "__stack_chk_fail"}

    @pytest.mark.parametrize("extension", EXTENSIONS)
    def test_exports_nothing_but_the_module(self, extension):
        symbols = [line.split()[-1] for line in output("nm", "--dynamic", "--defined-only", extension).splitlines()]
        assert [name for name in symbols if name not in ("_init", "_fini")] == [
            f"PyInit_{pathlib.Path(extension).name.split('.')[0]}"
        ]

    @pytest.mark.parametrize("extension", EXTENSIONS)
    def test_no_loose_mathematics_linked_in(self, extension):
        # crtfastmath.o, which sets flush-to-zero at load time, and the functions that GCC calls for -ffast-math.
        assert not re.search(r"set_fast_math|__\w+_finite|_ZGV", output("nm", "--dynamic", extension))
        assert "set_fast_math" not in output("readelf", "--symbols", "--wide", extension)


@pytest.fixture(scope="module")
def decisions():
    """The module `setup`, whose `setup()` runs only where it is the program."""
    specification = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class TestFlags:
    def test_floating_point_rules_stay(self, decisions):
        flags = [*decisions.C_FLAGS, *decisions.extension("_engine").extra_compile_args]
        for levels in decisions.LEVELS.values():
            flags += [flag for extra in levels.values() for flag in extra]
        loose = re.compile(
            r"-Ofast|-march=|-mtune=|-f.*(fast-math|unsafe-math|finite-math|associative|reciprocal|no-signed)"
        )
        assert [flag for flag in flags if loose.search(flag)] == []
        assert decisions.C_FLAGS.count("-ffp-contract=off") == 1

    def test_instruction_sets_are_the_levels_own(self, decisions):
        assert not [flag for flag in decisions.C_FLAGS if flag.startswith("-m")]
        for name in ("_engine", "_batch"):
            extension = decisions.extension(name)
            assert not [f for f in extension.extra_compile_args + extension.extra_link_args if f.startswith("-m")]

    def test_every_level_has_a_file(self, decisions):
        listed = {name for levels in decisions.LEVELS.values() for name in levels}
        sources = {path.stem.removeprefix("level_") for path in (ROOT / decisions.SOURCE).glob("level_*.c")}
        assert listed == sources
        assert set(_engine.built_levels()) <= set(decisions.LEVELS[decisions.family()])


class TestLesserCompiler:
    def test_without_openmp_and_avx(self, tmp_path):
        # A compiler that has never heard of AVX or OpenMP: both are left out, and the rest works.
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tmp_path)
        shutil.copytree(ROOT / "fastkl", tmp_path / "fastkl", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        compiler = tmp_path / "cc"
        compiler.write_text(
            '#!/bin/sh\ncase " $* " in *" -mavx"*|*" -fopenmp "*) echo "unknown option" >&2; exit 1;; esac\n'
            f'exec {os.environ.get("CC", "cc")} "$@" -O1\n'  # which wins, and is done sooner
        )
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("FASTKL_", "PYTHON"))}
        subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=tmp_path,
            env=environment | {"CC": str(compiler)},
            check=True,
            capture_output=True,
            text=True,
        )
        program = """
import numpy as np, fastkl, fastkl.reference
config = fastkl.show_config(mode="dicts")
assert config["fastkl"]["openmp"] is None, config
assert config["threads"] == {"default": 1, "why": "built without OpenMP"}, config
p, q = np.random.default_rng(1).random((2, 4000, 64))
result = fastkl.kl_divergence(p, q, n_threads=4)
expected = fastkl.reference.kl_divergence(p, q)
assert np.allclose(result, expected, rtol=1e-12, atol=0)
print(fastkl.__file__, *config["levels"]["built"])
"""
        where, *levels = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        assert pathlib.Path(where).is_relative_to(tmp_path)
        assert levels == list(_engine.built_levels()[:1])
