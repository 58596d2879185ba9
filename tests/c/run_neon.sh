#!/usr/bin/env bash
# The row kernels of the level `neon`, cross-compiled and run on an emulated aarch64: run_neon.sh N takes every Nth case.
# CROSS_CC and PYTHON choose the compiler and the Python (which needs what setup.py imports).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
compiler=${CROSS_CC:-aarch64-linux-gnu-gcc}
program=build/tests-c/neon

for command in "$compiler" qemu-aarch64; do
    if ! command -v "$command" >/dev/null; then
        echo "$command is missing; on Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2
        exit 1
    fi
done
# Undefined behaviour traps: there is no sanitizer library to link. The checks left out are those of run_sanitizers.sh.
"$python" tests/c/build.py arm "$program" "$compiler" -O1 -static \
    -fsanitize=undefined -fno-sanitize=null,object-size,pointer-overflow -fsanitize-undefined-trap-on-error
qemu-aarch64 "$program" "${1:-1}"
