# Every target needs Python 3.11 (constraints.txt pins for it) and nothing else: it installs first, into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUTPUT ?= runs/demo

# Container images forbid bytecode. Each process would then compile torch and diffusers again: 12 of the 20 seconds it takes to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo quick docs site test lint evidence clean

install: $(VENV)/.installed
# torch first and with pip: pip's configuration may name a CPU build, and once one is there the ranges of other packages pull no other.
# The rest with uv, in parallel, where it can be had; else with pip. Nothing is compiled ahead: Python compiles what is imported.
GROUPS := --constraint constraints.txt --editable . --group test --group lint
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), about 2 GB: a minute or two, longer where torch comes with CUDA"
	@echo "1/3 A virtual environment"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "2/3 PyTorch, the largest package"
	@$(BIN)/python -m pip install --no-compile --constraint constraints.txt torch
	@echo "3/3 Everything else, and amd-plugin itself as it stands here"
	@$(BIN)/python -m pip install --no-compile --quiet "uv>=0.8" || echo "uv cannot be had here; pip takes longer"
	@$(BIN)/uv pip install --python $(BIN)/python $(GROUPS) || { \
		$(BIN)/python -m pip install --no-compile --quiet --upgrade "pip>=25.1" && \
		$(BIN)/python -m pip install --no-compile $(GROUPS); }
	@touch $@

# Points, where the truth is known, with a random reward as the control; then pictures by prompt, with a judge's verdict under each,
# from a student that DMD has distilled. One seed each: this shows what runs look like, and docs/evidence.md what comes out.
SCENES ?= 30
START := benchmarks/starts/scenes
demo: install
	$(BIN)/amd-plugin compare modes2d --objectives dmd,amd,amd_random_reward --seeds 1 --no-report --output $(OUTPUT)/modes2d
	$(BIN)/amd-plugin compare scenes --objectives dmd,amd --seeds 1 --no-report --output $(OUTPUT)/scenes \
		--set train.max_steps=$(SCENES) --set train.evaluate_every=$(SCENES) --set evaluate.samples=240 \
		--set model.student_from=$(START)/student --set model.fake_score_from=$(START)
	$(BIN)/amd-plugin report $(OUTPUT)/scenes $(OUTPUT)/modes2d --output $(OUTPUT)/report.html

# docs/evidence.md and the tables of docs/results: hours on two cores; finished runs are kept, so it can be stopped and continued.
evidence: install
	$(BIN)/python benchmarks/evidence.py run

# A contributor's loop: laws, objectives, recipes, the command line.
quick: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/laws tests/maths tests/objectives tests/recipe tests/schedule tests/test_cli.py

# The tables of options in docs/, from where options are declared, and what the headers of recipes say of plans.
docs: install
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/plan_headers.py

# The documentation as a site, in site/; a link that leads nowhere fails. It imports nothing of the package.
site: install
	@$(BIN)/python -c "import material, mkdocstrings" 2> /dev/null || { \
		$(BIN)/python -m pip install --no-compile --quiet --upgrade "pip>=25.1" && \
		$(BIN)/python -m pip install --no-compile --quiet --constraint constraints.txt --group docs; }
	$(BIN)/python -m mkdocs build --strict

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist
