PYTHON ?= python3
V := .venv
BIN := $(V)/bin

.PHONY: demo test check bench docs golden setup clean

setup: $(V)/.stamp

# One place installs everything; the constraints keep torch (and its size) where they are.
$(V)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(V)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

demo: setup  ## the main job on generated torsos, report in demo/report.html
	$(BIN)/voco demo --out demo --overwrite

# Two processes of one thread each: two of two threads would wait for each other on two cores.
test: setup  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: setup  ## speed and memory as ratios against plain reference paths
	$(BIN)/voco bench --out bench-out

golden: setup  ## how each method learns, recorded and drawn anew: half an hour
	$(BIN)/python -m golden.curves

docs: setup  ## the documentation, in docs/_build
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

clean:
	rm -rf $(V) demo bench-out docs/_build
