# Two commands: `make demo` and `make test`. Both set up .venv first; one installation serves both, because two would
# cost a second venv and could resolve apart.
#
#   make demo PY=python3.12     uses another interpreter, 3.11 or newer

PY ?= python3
BIN := .venv/bin
EXTRAS := lab,ml,sweep,brokers,platform,dev

# Set on some machines; without bytecode every start of a process compiles its whole world again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test clean

demo: .venv/.installed
	@if [ -t 0 ] && [ -t 1 ]; then exec $(BIN)/hftlab demo; else exec $(BIN)/hftlab demo --seconds 20 --json; fi

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@# Notebooks start sessions: in a home of their own, short because sockets lie in it, and ended with it.
	@home=$$(mktemp -d /tmp/hft.XXXXXX); export HFTLAB_HOME="$$home"; trap 'exit 130' INT TERM; \
	trap '$(BIN)/python -c "from hftlab.services.supervisor import shutdown; shutdown()"; rm -rf "$$home"' EXIT; \
	$(BIN)/python -m pytest -q --nbval-lax --nbval-current-env hftlab tests notebooks

# Installed again when the dependencies change, and only then: the stamp is younger than both files.
.venv/.installed: pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "hftlab needs Python 3.11 or newer, and '$(PY)' is not: make $(firstword $(MAKECMDGOALS)) PY=python3.12" >&2; exit 1; }
	$(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --compile -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
