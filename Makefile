# The commands of this project. Each makes what it needs first, in .venv and build; nothing outside is touched.
#
#   make demo     score a million real pairs of distributions, and compare with NumPy, SciPy and the exact values
#   make examples three worked examples, each of which leaves a picture in build/examples
#   make test     run the tests; PYTEST="-k score -x" passes options on
#   make bench    time the kernels case by case; the tables of the README come from .venv/bin/python -m bench --readme
#   make build    compile, and put the command fastkl into .venv/bin
#   make clean    remove all that these made
#
# PYTHON=/path/to/python3 chooses the Python, 3.11 or newer, that .venv is made with.

PYTHON ?= python3
PYTEST ?=
RUN := .venv/bin/python
SOURCES := setup.py $(wildcard fastkl/_kernels/*.pyx fastkl/_kernels/*.pxd fastkl/_kernels/src/*)

.PHONY: demo examples test bench build peers clean
.NOTPARALLEL:  # one pip at a time

demo: build .venv/demo.installed
	$(RUN) demo/digits.py

examples: build .venv/examples.installed
	for script in examples/*.py; do echo "$$script"; $(RUN) "$$script" --folder build/examples || exit 1; done

test: build .venv/test.installed
	$(RUN) -m pytest $(PYTEST)

bench: build peers
	$(RUN) -m pytest bench --benchmark-enable --benchmark-only $(PYTEST)

build: .venv/built

peers: .venv/test.installed .venv/peers.installed

.venv/built: .venv/build.installed pyproject.toml $(SOURCES)
	$(RUN) -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --editable .
	touch $@

.venv/build.installed: pyproject.toml scripts/environment.py
	$(PYTHON) scripts/environment.py .venv
	touch $@

# A group of pyproject.toml's optional dependencies.
.venv/%.installed: .venv/build.installed
	$(PYTHON) scripts/environment.py .venv $*
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	find fastkl tests bench demo examples scripts -name __pycache__ -prune -exec rm -rf {} +
	rm -f fastkl/_kernels/*.so
