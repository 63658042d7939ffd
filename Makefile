# `make demo` and `make test` need Python 3.11 (constraints.txt pins for it) and nothing else: both install first, into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUTPUT ?= runs/demo

.PHONY: install demo test lint evidence clean

install: $(VENV)/.installed
# torch first and alone: once a build is there, the ranges of the other packages no longer pull another one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group test
	touch $@

demo: install
	$(BIN)/amd-plugin compare modes2d --objectives dmd,amd,amd_random_reward --seeds 8 --output $(OUTPUT)/modes2d
	$(BIN)/amd-plugin compare digits --objectives dmd,amd --seeds 2 --output $(OUTPUT)/digits
	$(BIN)/amd-plugin report $(OUTPUT)/modes2d $(OUTPUT)/digits --output $(OUTPUT)/report.html

# docs/evidence.md and the tables of docs/results: hours on two cores; finished runs are kept, so it can be stopped and continued.
evidence: install
	$(BIN)/python benchmarks/evidence.py run

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist
