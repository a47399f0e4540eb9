# One entry for everything: `make` lists the targets. The first target that needs it creates .venv.

PYTHON ?= python3
ARGS   ?=

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed

BENCH_VENV  := .venv-bench
BENCH_PY    := $(BENCH_VENV)/bin/python
BENCH_STAMP := $(BENCH_VENV)/.installed

DOCS_STAMP := $(VENV)/.docs-installed

# Two pytest workers on two cores: one thread each.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all fuzz check bench bench-plan bench-gpu kernels matrix matrix-torch golden pages docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): requirements-dev.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## run examples/demo.py (ARGS=... are passed on)
	$(PY) examples/demo.py $(ARGS)

# $(call run_tests,NAME,NETWORKS,PYTEST ARGUMENTS): pytest on two workers, then the seconds used.
define run_tests
@start=$$(date +%s); status=0; \
env $(ONE_THREAD) TNC_FUZZ_NETWORKS=$(2) $(PY) -m pytest -n 2 $(3) $(ARGS) || status=$$?; \
echo "make $(1): used $$(($$(date +%s) - start)) s"; \
exit $$status
endef

test: $(STAMP) ## tests without the slow ones, 2000 fuzzed networks
	@echo "make test: budget 12 min on 2 cores: every test not marked slow, 2000 fuzzed networks"
	$(call run_tests,test,2000,-m "not slow")

test-all: $(STAMP) ## every test, 20000 fuzzed networks
	@echo "make test-all: budget 60 min on 2 cores: every test, 20000 fuzzed networks"
	$(call run_tests,test-all,20000)

fuzz: $(STAMP) ## run the fuzzer (ARGS=... are passed on)
	$(PY) -m tests.fuzz $(ARGS)

check: $(STAMP) ## ruff, mypy and the import layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_layers.py

# The peers go one by one: one that does not install is named in the tables, the others are timed.
$(BENCH_STAMP): requirements-dev.txt requirements-bench.txt pyproject.toml
	test -x $(BENCH_PY) || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	sed 's/#.*//' requirements-bench.txt | while read peer; do test -z "$$peer" || \
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	-c requirements-dev.txt "$$peer" || echo "bench: $$peer was not installed"; done
	$(BENCH_PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

bench: $(BENCH_STAMP) ## time us beside the peers (ARGS="--quick", "--all", "--against FILE", "--help")
	$(BENCH_PY) -m benchmarks.run $(ARGS)

bench-plan: $(STAMP) ## compare plans: predicted and measured time of many trees (ARGS="--quick", "--calibrate", "--help")
	$(PY) -m benchmarks.plan $(ARGS)

bench-gpu: $(STAMP) ## check and time the Triton backend on this machine's GPU (ARGS="--quick")
	$(PY) -m benchmarks.gpu $(ARGS)

kernels: $(STAMP) ## write docs/kernels.json and .md: what kernels compile to (ARGS="--all")
	$(PY) -m benchmarks.kernel_table $(ARGS)

matrix: $(STAMP) ## test the Triton backend with triton 3.6, 3.7 and 3.9
	$(ONE_THREAD) $(PY) -m tests.matrix $(ARGS)

matrix-torch: $(STAMP) ## test torch's transforms with other versions of torch and Python
	$(ONE_THREAD) $(PY) -m tests.torch_matrix $(ARGS)

golden: $(STAMP) ## regenerate tests/golden; read the diff before committing it
	$(PY) -m pytest tests -m "not slow" -q --golden-update -k golden

pages: $(STAMP) ## write the pages and pictures of docs/ that are made of the code
	$(PY) docs/build_formats.py
	$(PY) docs/build_layers.py
	$(PY) docs/build_inside.py
	$(PY) docs/build_torch_support.py
	$(PY) docs/build_seeing.py

$(DOCS_STAMP): $(STAMP) requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements-dev.txt -r requirements-docs.txt
	@touch $@

docs: $(DOCS_STAMP) ## build docs/_build/html; notebooks are executed, warnings are errors
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)

clean: ## remove build output and caches; .venv stays
	rm -rf build dist *.egg-info demo-output bench-output quickstart-output docs/_build docs/notebooks
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(BENCH_VENV)/*' -prune -exec rm -rf {} +
