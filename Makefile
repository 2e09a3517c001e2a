# demo · test · test-slow · check · reference · bench. Everything runs in .venv, which is made when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOLDERS := models clients strategies analysis simulations
export FLWR_TELEMETRY_ENABLED = 0

.PHONY: demo test test-slow check reference bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/pudica run themis-digits

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# mypy finds the folders under the name that they are installed by.
	mkdir -p build/tree/pudica
	for folder in $(FOLDERS); do ln -sfn ../../../$$folder build/tree/pudica/$$folder; done
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sphinx-build -W --keep-going -q docs/reference build/reference

reference: install
	$(BIN)/sphinx-build -W --keep-going -q docs/reference build/reference
	@echo "open build/reference/index.html"

# make bench ARGS="exchange-* --repeats 3": rows and options, in quotes so that the shell keeps them
bench: install
	$(BIN)/python -m pudica.simulations.benchmarks $(ARGS:%='%')

clean:
	rm -rf $(VENV) build *.egg-info
