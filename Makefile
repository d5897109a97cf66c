# Every target makes .venv itself, from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test test-slow check bench clean

help:
	@echo "make demo       train a model on five hospitals' records, epsilon 3"
	@echo "make test       every test that fits in five minutes"
	@echo "make test-slow  the rest"
	@echo "make check      lint, types, layers"
	@echo "make bench      performance claims, measured beside named others (ONLY=\"noise log\": some of them)"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch,examples,direct,dev]"
	@touch $@

demo: $(STAMP)
	@rm -rf build/demo
	HUBBUB_HOME=build/demo/home $(BIN)/hubbub run examples/breast_cancer --out build/demo/run

test: $(STAMP)
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/pytest -n 2 -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py $(ONLY)

clean:
	rm -rf .venv build
