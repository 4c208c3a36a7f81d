# make demo   train on real digits and write a report: sets everything up first
# make check  run the tests of single rooms, without whole runs, engines and other processes
# make test   run the tests: sets everything up first
# make fuzz   try the readers of files and answers on damaged ones, for two minutes or FUZZ_SECONDS=600
# make site   build the documentation site in build/site
# make release   build into dist/, check what an index would show, run the tests of the unpacked source distribution
# make lint   style, types, dependency order

PYTHON ?= python3
FUZZ_SECONDS ?= 120
ROOMS := $(addprefix tests/,algorithms client core data evaluation federation posterior) $(wildcard tests/test_[cpr]*.py)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo check test fuzz site release lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/cli.stamp
	$(BIN)/dswag train --equal-budget --output runs/demo --overwrite

check: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ROOMS)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

fuzz: $(VENV)/dev.stamp
	$(BIN)/python tools/fuzz.py --seconds $(FUZZ_SECONDS)

site: $(VENV)/dev.stamp
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs/site docs build/site

release: $(VENV)/dev.stamp
	$(PIP) --group release
	rm -rf dist build/sdist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*
	mkdir -p build/sdist
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components 1
	cd build/sdist && PYTHONPATH=$$PWD/src ../../$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) runs dist build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/cli.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dswag needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..., say" % sys.version_info[:2])'
	@echo "Setting up $(VENV), which takes about two minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet "pip>=25.1"
	$(PIP) --editable '.[cli]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/cli.stamp
	$(PIP) --group dev
	touch $@
