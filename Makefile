# make install   virtual environment with the server, the clients and the developer tools
# make demo      the backdoor and the defence, side by side, on this machine
# make test      everything a change must pass
# make coverage  the same, and how much of the code it runs; fails below the floor in pyproject.toml
# make gpu       the product at the 8B shape on this machine's GPU (docs/gpu.md)
#
# pip's own configuration decides where packages come from. PyTorch's default build for Linux
# brings CUDA; `make install TORCH_ARGS="--index-url URL"` takes another build, CPU or ROCm.

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
PYTEST_ARGS ?= -n 4 --dist loadfile
# `make test COVERAGE=1` is `make coverage`.
COVERAGE ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Four files of tests at a time, for many of them wait for processes; each takes one thread.
test: export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo test coverage lint format lock clean gpu wheels

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11: make install PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,dev]'
	touch $@

demo: install
	$(BIN)/disp demo $(DEMO_ARGS)

test: lint
ifeq ($(COVERAGE),)
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	@for package in purifier server clients; do printf '%s: %s%%\n' "$$package" \
		"$$($(BIN)/coverage report --include="$$package/*" --format=total --fail-under=0)"; done
	$(BIN)/coverage report
endif

coverage:
	$(MAKE) test COVERAGE=1

# Without an environment of the project the machine's own Python runs it.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(GPU_ARGS)

wheels: install
	$(BIN)/python -m benchmarks.gpu.wheels

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install
	{ echo "# Every package the tests run with; the library's own ranges in pyproject.toml are wide."; \
	  echo "# Made by \`make lock\`."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .wheels build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
