# llm4sbr_ray: `make demo` and `make test` work from a clean checkout; both set up .venv by themselves.
#
# Only Python 3.11 or 3.12, make and git are assumed. On a GPU machine: make install EXTRA=gpu

EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that really runs (a pyenv shim may exist and refuse).
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
# uv does not read pip's folder of local wheels; where pip knows one, pass it on, elsewhere ask PyTorch's CPU index.
ifeq ($(EXTRA),cpu)
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else ifeq ($(UV_FIND_LINKS),)
TORCH_BACKEND := --torch-backend cpu
endif
endif
STAMP := $(VENV)/.installed-$(EXTRA)

.PHONY: demo test lint install bench docs audit clean
.DEFAULT_GOAL := demo

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "llm4sbr_ray needs Python 3.11 or 3.12 on the PATH (or: make PYTHON=/path/to/python)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode $(TORCH_BACKEND) -c constraints.txt -e '.[$(EXTRA),dev]'
	@touch $@

demo: install
	$(BIN)/python jobs/pipeline.py --config configs/demo.yaml
	$(BIN)/python jobs/ask.py --config configs/demo.yaml

# First what needs no Ray, vLLM or browser, a file to a core (one thread each, or they would wait for one another's); then
# the rest, which shares one cluster and one run.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not integration" -n auto --dist loadfile
	$(BIN)/python -m pytest -m integration

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/models_step.py
	$(BIN)/python benchmarks/training.py --steps 10

# Known vulnerabilities of the pinned packages. It asks a public database, so it is no part of the tests.
audit: install
	$(BIN)/uv tool run pip-audit==2.10.1 --requirement constraints.txt --no-deps --disable-pip

docs: install
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache *.egg-info
