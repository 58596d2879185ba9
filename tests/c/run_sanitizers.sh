#!/usr/bin/env bash
# The row kernels of every x86 level, and their one-lane form, under the address and undefined-behaviour sanitizers.
# CC and PYTHON choose the compiler and the Python (which needs what setup.py imports).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
build=build/tests-c

# Left out are the checks of pointers themselves, which double the time that the compiler takes: to use a wrong one is an
# error of address.
sanitizers=(-fsanitize=address,undefined -fno-sanitize=null,object-size,pointer-overflow -fno-sanitize-recover=all -g1 -O1)
"$python" tests/c/build.py x86 "$build/sanitized" "${CC:-gcc}" "${sanitizers[@]}" &
# The equals sign: careful.h defines it as well, as nothing.
"$python" tests/c/build.py other "$build/sanitized-one-lane" "${CC:-gcc}" "${sanitizers[@]}" -DFASTKL_SCALAR=
wait $!
"$build/sanitized" &
"$build/sanitized-one-lane"
wait $!
