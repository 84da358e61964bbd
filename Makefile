# Every target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/.ready

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY)  ## install, then the whole reproduction on a laptop; again: it resumes
	@$(BIN)/mdm run tiny

test: $(READY)  ## install, then the tests, two at a time
	@$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## style, formatting, layers, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

browser: $(READY)  ## the tests that need Chromium
	$(BIN)/pytest -q -m browser

slow: $(READY)  ## the tests that take minutes: kills in every stage of the real flow, a sample of crash points
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder

drills: $(READY)  ## everything slow, every crash point of a checkpoint's writing, 30 kills on the data road: by hand, now and then
	@$(BIN)/pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder
	@$(BIN)/python benchmarks/crash_points.py
	@$(BIN)/python benchmarks/data_kills.py

gpu-check: $(READY)  ## try everything that a GPU does differently, and its speed; without one the CPU part
	@$(BIN)/python benchmarks/gpu_check.py

bench-data: $(READY)  ## speed of the loader, the downloads, shards and frames, each beside what it should reach: minutes
	@$(BIN)/python -m benchmarks.data

bench-evaluation: $(READY)  ## what measuring costs beside clean-fid, and which is closer to the exact value
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/evaluation_features.py

ci:  ## everything that must hold before a change lands: lint, layers, types, tests, the page in Chromium, kills in every stage
	@.ci/run

deploy: $(READY)  ## create the work pool and deploy to the Prefect server at PREFECT_API_URL
	@$(BIN)/mdm deploy

lock:  ## resolve the dependencies anew
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --quiet -o requirements.lock

install: $(READY)  ## only set up

clean:  ## remove the environment and caches; results in var/ stay
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .venv-setup.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml infra/setup.sh
	@sh infra/setup.sh

.PHONY: help demo test lint browser slow drills gpu-check bench-data bench-evaluation ci deploy lock install clean
