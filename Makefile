# Spells commands of the `comp` program. Values reach the shell only as environment variables, as they were typed:
# nothing in MODEL='$(shell …)' or ARGS='`…`' is ever run by make or by the shell.

override SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

override VENV := .venv
override COMP := $(VENV)/bin/comp
override READY := $(VENV)/.ready

override variables := PYTHON DATA MODEL FOLD NAME VIEWS RULE PROCS FROM RUNS FILE ARGS
define raw
ifdef $(1)
override $(1) := $$(value $(1))
endif
export $(1)
endef
$(foreach name,$(variables),$(eval $(call raw,$(name))))

# Every variable that was given becomes its option; ARGS and RUNS are split at spaces and nothing else is done to them.
words = read -r -a args <<< "$${ARGS//$$'\n'/ }"; read -r -a runs <<< "$${RUNS//$$'\n'/ }"; \
	options() { for pair in "$$@"; do name=$${pair%%=*}; flag=$${pair\#*=}; \
	if [ -n "$${!name}" ]; then opts+=("$$flag=$${!name}"); fi; done; }; opts=()

.PHONY: help setup data folds show model train train-all predict scores submit views compare doctor test check soak lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## make the environment (every other target does it when it is needed)

$(READY): requirements.txt pyproject.toml
	@./setup.sh "$${PYTHON:-python3}" "$(VENV)"

data: $(READY) ## read and check the raw files (DATA=)
	@$(words); options DATA=--data; $(COMP) data "$${opts[@]}" "$${args[@]}"

folds: $(READY) ## split the labelled photos (DATA=)
	@$(words); options DATA=--data; $(COMP) folds "$${opts[@]}" "$${args[@]}"

show: $(READY) ## write a picture of one augmented batch (DATA= MODEL=)
	@$(words); options DATA=--data; $(COMP) show "$${opts[@]}" "$${args[@]}" -- "$${MODEL:-resnet34}"

model: $(READY) ## print a network's layer table (MODEL=)
	@$(words); $(COMP) model "$${args[@]}" -- "$${MODEL:-resnet34}"

train: $(READY) ## train one fold, or go on where it stopped (MODEL= FOLD= DATA= NAME= FROM= PROCS=)
	@$(words); options DATA=--data FOLD=--fold NAME=--name FROM=--from PROCS=--procs; \
	$(COMP) train "$${opts[@]}" "$${args[@]}" -- "$${MODEL:-resnet34}"

train-all: $(READY) ## train all folds of a model
	@$(words); options DATA=--data NAME=--name FROM=--from PROCS=--procs; \
	$(COMP) train --fold all "$${opts[@]}" "$${args[@]}" -- "$${MODEL:-resnet34}"

predict: $(READY) ## write the predictions that are missing (RUNS= VIEWS= DATA=)
	@$(words); options DATA=--data VIEWS=--views PROCS=--procs; $(COMP) predict "$${opts[@]}" "$${args[@]}" -- "$${runs[@]}"

scores: $(READY) ## compare the runs' fold scores (RUNS= VIEWS= DATA=)
	@$(words); options DATA=--data VIEWS=--views; $(COMP) scores "$${opts[@]}" "$${args[@]}" -- "$${runs[@]}"

submit: $(READY) ## blend runs into a checked CSV (RUNS= RULE= VIEWS= NAME= DATA=)
	@$(words); options DATA=--data VIEWS=--views RULE=--rule NAME=--name PROCS=--procs; \
	$(COMP) submit "$${opts[@]}" "$${args[@]}" -- "$${runs[@]}"

views: $(READY) ## measure what each view adds on a run's out-of-fold images (MODEL= or NAME=)
	@$(words); options DATA=--data VIEWS=--views; $(COMP) views "$${opts[@]}" "$${args[@]}" -- "$${NAME:-$${MODEL:-resnet34}}"

compare: $(READY) ## paired differences between runs (RUNS='a b')
	@$(words); options DATA=--data VIEWS=--views; $(COMP) compare "$${opts[@]}" "$${args[@]}" -- "$${runs[@]}"

doctor: $(READY) ## two minutes of probes: why does it not learn? (MODEL=)
	@$(words); options DATA=--data; $(COMP) doctor "$${opts[@]}" "$${args[@]}" -- "$${NAME:-$${MODEL:-resnet34}}"

test: $(READY) ## the whole test suite
	@$(VENV)/bin/python -m pytest

check: $(READY) ## lint, types, tests
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/python -m pytest

soak: $(READY) ## the long fault tests (hours): kills, failed writes, fuzzing
	@$(VENV)/bin/python -m tests.faults.soak

lock: $(READY) ## pin the newest versions with their hashes
	@uv=$$(command -v uv || echo $(VENV)/tools/bin/uv); "$$uv" pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --upgrade -q -o requirements.txt

clean: ## remove the environment (runs, data and submissions stay)
	@rm -rf $(VENV)
