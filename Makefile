# The doors of the project. CI opens the same ones.
#
# Variables given on the command line are the chapters' parameters: make book SEED=3 DEVICE=cpu

PYTHON := python3
CORES := $(shell getconf _NPROCESSORS_ONLN)
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
BENCH := $(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))

# A value reaches the program as it was given, whatever characters it has. What a shell's
# environment calls the same is not meant.
quote = '$(subst ','\'',$1)'
given = $(filter command line,$(origin $1))
OURS := COVERAGE ID SEEDS CHAPTERS PROFILE PYTHON CORES CHAPTER PORT STUDY CHECK BENCH PYTHON_VERSION MINUTES OUT FROM
NAMES := $(foreach v,$(filter-out $(OURS),$(.VARIABLES)),$(if $(call given,$v),$v))
PARAMETERS := $(foreach v,$(sort $(NAMES)),$(call quote,$v=$(value $v)))
otherwise = $(call quote,$(if $(call given,$1),$(value $1),$2))
option = $(if $(call given,$1),$2 $(call quote,$(value $1)))
writable = @test -w . || { echo "lipbook: $$PWD: this folder is read-only: work in a copy that you may write to"; exit 1; }
unexport $(filter PYTHON%,$(.VARIABLES))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test core claim claims flips seeds refresh study serve pdf weigh future links audit bench gpu-kit gpu gpu-record lock clean

help: ## print this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

book: $(READY) ## execute the chapters and build the site (SEED=3 DEVICE=cuda SCALE=full)
	@$(RUN) -m workflow book --cores $(call quote,$(CORES)) -- $(PARAMETERS)

test: $(READY) ## build the book at another seed and run every check (COVERAGE=yes)
	$(if $(PARAMETERS),$(error make test takes no parameters: the checks choose their own seeds))
	$(writable)
	@$(RUN) -m workflow browser
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry .
	@$(RUN) -m workflow check --cores $(call quote,$(CORES))
	$(RUN) -m pytest -n $(call quote,$(CORES)) $(if $(COVERAGE),--cov) --keep-passed

core: $(READY) ## run the tests of the package's core, in the Python at hand
	$(RUN) -m pytest -n $(call quote,$(CORES)) tests/core $(wildcard lipbook/*.py)

claim: $(READY) ## run just the cells that a claim's check needs (ID=PI2, SEED=3)
	$(if $(call given,ID),,$(error name the claim: make claim ID=PI2))
	@$(RUN) -m workflow claim -- $(call quote,$(value ID)) $(PARAMETERS)

claims: $(READY) ## run every claim's check by itself, and compare with what its chapter found (ID=PI2 for one)
	@$(RUN) -m workflow claims -- $(call option,ID)

flips: $(READY) ## plant a world for every claim in which the truth is otherwise (ID=PI2 for one)
	@$(RUN) -m workflow flips -- $(call option,ID)

seeds: $(READY) ## run chapters at seeds that nobody used yet (SEEDS=20 CHAPTERS="name name" PROFILE=name)
	@$(RUN) -m workflow seeds --cores $(call quote,$(CORES)) $(call option,SEEDS,--seeds) $(call option,PROFILE,--profile) -- $(call option,CHAPTERS)

refresh: $(READY) ## format and re-execute the stored notebooks in place (CHAPTER=name for one)
	@$(RUN) -m workflow refresh --cores $(call quote,$(CORES)) -- $(call option,CHAPTER)

study: $(READY) ## measure a long study into book/studies (STUDY=name; CHECK=20 repeats a sample; PROFILE=slurm)
	$(if $(call given,STUDY),,$(error name the study: make study STUDY=regularization))
	@$(RUN) -m workflow study --cores $(call quote,$(CORES)) $(call option,CHECK,--check) $(call option,PROFILE,--profile) -- $(call option,STUDY)

serve: $(READY) ## serve the built site on this machine (PORT=8000)
	@$(RUN) -m workflow serve $(call option,PORT,--port)

pdf: book ## print the book into one PDF (SEED=3 DEVICE=cuda SCALE=full)
	@$(RUN) -m workflow pdf

weigh: $(READY) ## say how heavy the built site is, and what is too heavy
	@$(RUN) -m workflow weigh

future: book ## try the newest of everything: the core's tests, the book without Jupyter Book
	@$(RUN) -m workflow future

links: book ## ask every address outside of the site that a page names
	$(VENV)/bin/jupyter-book build build/source --builder linkcheck --path-output build/links

audit: ## look for known vulnerabilities in what requirements.lock pins
	$(call quote,$(PYTHON)) -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

bench: $(READY) ## compare speed with named peers, as ratios (BENCH=name for one)
	$(foreach name,$(BENCH),$(if $(wildcard benchmarks/$(name).py),,$(error no benchmark '$(name)'; there are $(basename $(notdir $(wildcard benchmarks/[a-z]*.py))))))
	@for name in $(foreach name,$(BENCH),$(call quote,$(name))); do OMP_NUM_THREADS=1 $(RUN) -m "benchmarks.$$name" || exit 1; done

gpu-kit: $(READY) ## gather the wheels that `make gpu` needs on a machine without a network (PYTHON_VERSION=3.12)
	@$(RUN) -m workflow gpu-kit $(if $(call given,PYTHON_VERSION),$(call quote,$(value PYTHON_VERSION)))

# Where the Python named by PYTHON has a torch with CUDA, that one runs it, with the kit's wheels: no .venv.
gpu: GPU = --minutes $(call otherwise,MINUTES,8) --out $(call otherwise,OUT,build/gpu)
gpu: ## run the book on a GPU into one record (MINUTES=8 OUT=build/gpu PYTHON=python3)
	@if $(call quote,$(PYTHON)) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then \
	  if ls build/gpu-kit/wheels/*.whl > /dev/null 2>&1; then \
	    $(call quote,$(PYTHON)) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target build/gpu-site build/gpu-kit/wheels/*.whl || exit 1; fi; \
	  PYTHONPATH="$(CURDIR)/build/gpu-site:$(CURDIR)" $(call quote,$(PYTHON)) -m workflow.gpu $(GPU); \
	else $(MAKE) --no-print-directory $(READY) && $(RUN) -m workflow.gpu $(GPU); fi

gpu-record: $(READY) ## keep what `make gpu` wrote: record, picture and tables (FROM=build/gpu)
	@$(RUN) -m workflow gpu-record $(call otherwise,FROM,build/gpu)

lock: ## pin anew what pyproject.toml asks for, in requirements.lock
	rm -rf build/lock && $(call quote,$(PYTHON)) -m venv build/lock
	build/lock/bin/python -m pip install --quiet -e '.[dev]' "torch==$$(sed -n 's/^torch==//p' requirements.lock)"
	build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean: ## remove what the other targets made, the environment too
	rm -rf $(VENV) build .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage

# The environment is ready when the last step of its making is done: a killed set-up starts over.
$(READY): requirements.lock pyproject.toml
	@$(call quote,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lipbook: Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(writable)
	@echo "Setting up $(VENV) (about two minutes) ..."
	@rm -f $@
	@$(call quote,$(PYTHON)) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
