# On a machine with only python3 (3.11 or newer) and make:
#   make demo   set up and run the whole chain on an embedded data set (a few minutes)
#   make test   set up and run the tests
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip writes byte code for everything it installs; the program does it when it first needs it
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint types check format clean

demo: $(READY)
	$(BIN)/amrctl demo --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: test lint types

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and exactly: a range would fetch the newest. Pip's own PIP_EXTRA_INDEX_URL chooses the build
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile $$(grep '^torch==' constraints.txt)
	$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
