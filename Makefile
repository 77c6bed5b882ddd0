# The two commands of a newcomer are `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test slow lint bench clean reference

demo: $(STAMP)
	$(BIN)/cedilla demo --out runs/demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow"

slow: $(STAMP)
	$(BIN)/pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# torch goes first and pinned: this takes the CPU build where one is at hand.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# transformers 4.55.4, the last release with right v1 logits, beside the environment and not in it:
# tests and benchmarks that compare with it put this folder first on their path.
reference: .reference/.installed
.reference/.installed: $(STAMP)
	$(BIN)/pip install --quiet --target .reference "transformers==4.55.4"
	touch $@

clean:
	rm -rf $(VENV) .reference .mypy_cache .ruff_cache .pytest_cache
