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

# The tables of docs/results: about three quarters of an hour on two cores; finished runs are kept, so it can be stopped and continued.
evidence: install
	$(BIN)/amd-plugin compare modes2d --objectives dmd,amd --ablate --tune objective.guidance_scale=1.1,1.25,1.4,1.6 --seeds 8 --output runs/evidence/modes2d
	$(BIN)/amd-plugin compare digits --objectives dmd,amd --ablate --tune objective.guidance_scale=1.1,1.25,1.4 --seeds 4 --output runs/evidence/digits
	$(BIN)/amd-plugin compare moving_digits --objectives dmd,amd --seeds 4 --output runs/evidence/moving_digits
	$(BIN)/amd-plugin report runs/evidence/modes2d runs/evidence/digits runs/evidence/moving_digits --output runs/evidence/report.html
	mkdir -p docs/results
	cp runs/evidence/modes2d/compare.md docs/results/modes2d.md
	cp runs/evidence/digits/compare.md docs/results/digits.md
	cp runs/evidence/moving_digits/compare.md docs/results/moving_digits.md

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist
