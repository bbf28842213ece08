# make demo | make test | make lint  - each prepares its own environment from a bare Python 3.11+
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q -c constraints.txt --progress-bar off

.PHONY: demo test lint constraints clean help

help:
	@echo "make demo   train ERM and AIM on minibirds100, print both, draw the masks (under 5 minutes)"
	@echo "make test   run the tests"
	@echo "make lint   format check, lint, types"

demo: $(VENV)/.core
	$(BIN)/spurbench sweep cluster/demo.yaml --results demo
	$(BIN)/spurbench leaderboard demo --select val_wga
	$(BIN)/spurbench explain --results demo -o demo/masks.png

test: $(VENV)/.test
	$(BIN)/pytest

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

constraints: $(VENV)/.lint
	$(INSTALL) -e '.[dev]'
	{ head -1 constraints.txt; $(PIP) freeze --exclude-editable | grep -viE '^(nvidia-|cuda-|triton|pip==|setuptools==|wheel==)'; } > constraints.new
	mv constraints.new constraints.txt

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spurbench needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing spurbench into $(VENV); torch is large, this takes a few minutes ..."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing what the tests compare with ..."
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@echo "installing linters ..."
	$(INSTALL) -e '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
