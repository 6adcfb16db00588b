BIN := .venv/bin
STAMP := .venv/.built

# The first Python that is new enough and can make environments (Debian packs ensurepip apart).
PYTHON = $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Checks need no network: the models are here, and pyright must not look for a newer self.
export HF_HUB_OFFLINE := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: demo docs test test-fast lint clean

demo: $(STAMP)
	@$(BIN)/hyperlens study studies/demo.toml

# Two workers, each of one thread; a module's tests share what they load, and tests/conftest.py says which modules come first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: $(STAMP)
	@$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs build/docs
	@echo "The documentation begins at build/docs/index.html."

# The environment and the results of runs stay.
clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that works is brought up to date in place; torch comes first, alone, as the release that was tested.
# The build backend is installed too, from the constraints, so that nothing unpinned is fetched to build the project.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "hyperlens needs Python 3.11 or newer, with venv." >&2; exit 2; }; \
		$(PYTHON) -m venv --clear .venv; }
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt hatchling editables
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev,query]'
	@touch $@
