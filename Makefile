# `make demo` and `make test` do all the set-up there is. Everything lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Small hosts are slower with two threads, and many times slower on a busy machine.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-slow chaos test-floor lint format docs bench bench-rl clean

demo: .venv/.installed ## grow a network on real digits, about a minute
	$(BIN)/esper demo

test: .venv/.installed-dev ## everything but what is marked slow
	$(BIN)/python -m pytest -n 2

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

chaos: .venv/.installed-dev ## kills, damages and starves runs; prints what came of it
	$(BIN)/python -m pytest -n 2 -m slow tests/tolaria/checkpoints tests/tolaria/test_hosts.py tests/scripts/test_resume.py tests/ddp
	$(BIN)/python -m bench.chaos
	$(BIN)/python -m bench.governor --jobs 2

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.installed-dev ## puts the generated tables into README
	$(BIN)/python dev/readme_tables.py --write

bench: .venv/.installed-dev ## ratios against their bounds; JSON in bench/results
	$(BIN)/python -m bench

bench-rl: .venv/.installed-bench ## our PPO beside sb3-contrib's on games of memory, masks and arguments
	$(BIN)/python -m bench.rl

test-floor: ## the suite on the oldest torch and the newest Python that are promised; wants a python3.13
	python3.13 -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet "torch==2.9.1" -e '.[dev]'
	.venv-floor/bin/python -m pytest -n 2

clean:
	rm -rf .venv .venv-floor .mypy_cache .pytest_cache .ruff_cache .hypothesis bench/results

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[mcp,tui,web]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.installed

.venv/.installed-bench: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev,bench]'
	@touch $@ .venv/.installed-dev .venv/.installed
