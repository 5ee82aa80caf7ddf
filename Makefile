# Every way to run anything in this course. `make help` lists the targets.

# The Python that makes the environment: the first of these that is there, runs, and is new enough.
PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& echo "$$name" && break; done),python3)
VENV ?= .venv
# A path may hold a space, which $(abspath) would take for the end of one.
VENV_PATH = $(if $(filter /%,$(firstword $(VENV))),,$(CURDIR)/)$(VENV)
RUN = "$(VENV_PATH)/bin/python"

# OpenMP threads that wait by spinning make small models up to fifteen times slower on a busy machine.
export OMP_WAIT_POLICY = passive

# The environment's programs first; a fresh home for progress and records, removed at the end.
IN_VENV = PATH="$(VENV_PATH)/bin:$$PATH"
FRESH = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	$(IN_VENV) LABKIT_HOME="$$home/home" LABKIT_RUNS="$$home/runs"
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout 600 -p no:cacheprovider
# This many processes run tests side by side; a test that must not share the machine is marked `alone` and comes after.
JOBS ?= 2

# The first lab is what opens, in the browser or by the printed address. Without a screen no browser is tried; JupyterLab
# wants to be told when root starts it.
LAB_FLAGS = --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
	--LabApp.default_url=/lab/tree/labs/00_start_here.ipynb \
	$(if $(DISPLAY)$(WAYLAND_DISPLAY)$(WSL_DISTRO_NAME),,--no-browser) \
	$(if $(filter 0,$(shell id -u)),--allow-root)

ifneq ($(filter execute record,$(MAKECMDGOALS)),)
ifndef LAB
$(error Say which lab, by its number: make $(firstword $(MAKECMDGOALS)) LAB=00)
endif
endif
ifneq ($(filter new,$(MAKECMDGOALS)),)
ifeq ($(and $(LAB),$(TOPIC)),)
$(error Say its number and its topic: make new LAB=99 TOPIC=my_topic)
endif
endif

.PHONY: help setup lab labs new execute record models lock bump clean
.PHONY: lint test test-unit test-built test-solutions test-long test-quick test-browser mutants agreement
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 16

setup:  ## make .venv and install the locked packages that fit this machine
	@$(PYTHON) requirements/install.py --venv "$(VENV)"

lab: setup  ## set up, then open JupyterLab on the first lab (pass flags on: make lab ARGS=--no-browser)
	@$(IN_VENV) $(RUN) -m jupyterlab $(LAB_FLAGS) $(ARGS)

new: setup  ## write the skeleton of a lab: make new LAB=99 TOPIC=my_topic
	@$(RUN) -m labkit.authoring new "$(LAB)" "$(TOPIC)"

labs: setup  ## build labs/ and labs/course.json from solutions/src
	@$(RUN) -m labkit.authoring

test: lint test-unit test-built test-solutions  ## everything: lint, tests, guards, built labs, solutions

test-unit: setup  ## unit tests, guards, untouched labs, each lab on one GPU tier's configuration
	@echo "== unit tests, guards, untouched labs"
	@$(FRESH) $(RUN) -m pytest -q --durations=15 -n $(JOBS) -m "not long and not alone" tests
	@$(FRESH) $(RUN) -m pytest -q --durations=5 -m "alone and not long" tests || [ $$? = 5 ]  # 5: there is none

test-built: setup  ## labs/ and solutions/ are what their sources say
	@echo "== labs are built from their sources"
	@$(RUN) -m labkit.authoring --check

test-solutions: setup  ## the solutions pass their checks (budget ci, strict)
	@echo "== solutions pass their checks"
	@$(FRESH) LABKIT_BUDGET=ci LABKIT_STRICT=1 $(RUN) -m pytest -q --durations=10 $(NBVAL) solutions

test-long: setup  ## what make test leaves out: each lab on the other GPU tiers, Locust, Colab's versions
	@$(FRESH) $(RUN) -m pytest -q --durations=10 -n $(JOBS) -m long $(or $(ARGS),tests)

test-quick: setup  ## the tests that start nothing, under every supported Python that is found; resolves both locks there
	@$(IN_VENV) $(RUN) requirements/quick.py

test-browser: setup  ## JupyterLab in headless Chromium; screenshots go to data/runs/screenshots
	@$(FRESH) $(RUN) -m pytest -q tests/browser

execute: setup  ## run one solution and store its outputs: make execute LAB=00
	@$(FRESH) LABKIT_BUDGET=learner LABKIT_STRICT=1 $(RUN) -m labkit.authoring execute $(LAB)

mutants: setup  ## break every solution in small ways and write the table of how many the checks notice
	@$(FRESH) $(RUN) tests/mutants.py $(ARGS)

agreement: setup  ## compare labkit with three public load tools on one vLLM server (a quiet machine, about 16 minutes)
	@$(FRESH) $(RUN) tests/agreement.py $(ARGS)

models: setup  ## train the two shipped models again, evaluate them, write their cards (hours on a CPU)
	@$(RUN) data/models/train.py draft --tokens 2.5e6
	@$(RUN) data/models/train.py target --tokens 3.9e6
	@$(RUN) data/models/evaluate.py
	@$(RUN) data/models/card.py

lock: setup  ## resolve requirements/*.in to locks with hashes, and write environment.yml; pins stay where they can
	@$(RUN) requirements/lock.py $(ARGS)

bump: setup  ## try newer pins in a scratch environment, report what moves (only resolve: make bump ARGS=--dry-run)
	@$(RUN) requirements/bump.py $(ARGS)

record: setup  ## run one solution on this machine and keep its records: make record LAB=00
	@mkdir -p data/recorded/$(LAB)
	@$(FRESH) LABKIT_RUNS="$(CURDIR)/data/recorded/$(LAB)" LABKIT_BUDGET=learner \
		"$(VENV_PATH)/bin/jupyter-execute" --timeout=1800 solutions/$(LAB)_*.ipynb

lint: setup  ## ruff alone
	@$(RUN) -m ruff check .

clean:  ## remove the environments and everything that tests left behind, but no learner's results
	@rm -rf .venv .venv-3.* .venv-tools .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed. data/runs and your progress were left alone."
