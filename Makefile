# Every command that a person runs. `make` alone lists them.
#
#   ARGS    goes to the command as typed:  make train ARGS='experiment=demo trainer.max_epochs=3'
#   TORCH   which build of torch to install: cpu, cu128, … (uv's --torch-backend), or default for
#           the one on the ordinary package index. It stays until TORCH names another.
#   NAME    the project's new name:  make rename NAME=my_project
#   RUN     the folder of a run, for a report or a rerun; or of a sweep, for its report.
#   EXTRAS  what else to install, as pyproject.toml names it: mlflow, ray, wandb, or several with
#           commas. It stays as TORCH does.
#   PYTHON  the Python to make .venv with, where the first one found is not the one wanted (to
#           change it later: make clean install PYTHON=…).

.PHONY: help install demo train sweep leaderboard optuna-dashboard evaluate predict export tensorboard mlflow report rerun bench test test-slow test-browser check format rename lock clean FORCE
.DEFAULT_GOAL := help

# `make train model=vgg16` would set a variable that nothing reads, and train the default.
KNOWN := ARGS TORCH NAME RUN EXTRAS PYTHON SHELL
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command%,$(origin $(name))),$(name)))
STRAY := $(filter-out $(KNOWN),$(GIVEN))
ifneq ($(STRAY),)
$(error error: options go into ARGS: make $(MAKECMDGOALS) \
	ARGS="$(strip $(foreach name,$(STRAY),$(name)=$(value $(name))))")
endif

help:
	@awk -F ':.*## ' '/^## / { print "\n" substr($$0, 4) } \
		/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile
	@echo; echo "Any command takes options:  make train ARGS='experiment=demo trainer.max_epochs=3'"

## Start

install: .venv/.installed ## Install everything into .venv, once (TORCH=cpu: without CUDA)

demo: .venv/.installed ## Train a small classifier from start to finish
	.venv/bin/python -m litvision.train experiment=demo $(value ARGS)

## Experiment

train: .venv/.installed ## Train as conf/train.yaml says, but for what ARGS changes
	.venv/bin/python -m litvision.train $(value ARGS)

sweep: .venv/.installed ## Train with every combination in conf/sweep/grid.yaml (ARGS='sweep=…')
	.venv/bin/python -m litvision.train $(if $(filter sweep=%,$(value ARGS)),,sweep=grid) $(value ARGS)

leaderboard: .venv/.installed ## List runs, the best first (ARGS='logs/grid --csv')
	.venv/bin/python -m litvision.leaderboard $(value ARGS)

optuna-dashboard: .venv/.installed ## Show the latest search (ARGS=<its study.journal>) in the browser
	@study=$(or $(value ARGS),$$(ls -t logs/optuna/*/study.journal 2>/dev/null | head -n 1)); \
	if [ -z "$$study" ]; then \
		echo "error: there is no search in logs/optuna yet: make sweep ARGS='sweep=optuna'" >&2; exit 1; \
	fi; \
	.venv/bin/optuna-dashboard "$$study"

evaluate: .venv/.installed ## Test a trained classifier from its checkpoint
	.venv/bin/python -m litvision.evaluate $(value ARGS)

predict: .venv/.installed ## Classify pictures (ARGS='checkpoint=… input=<file, folder or pattern>')
	.venv/bin/python -m litvision.predict $(value ARGS)

export: .venv/.installed ## Write a classifier as ONNX (ARGS='checkpoint=… format=torch_export': .pt2)
	.venv/bin/python -m litvision.export $(value ARGS)

tensorboard: .venv/.installed ## Show curves and figures of every run in the browser
	.venv/bin/tensorboard --logdir logs $(value ARGS)

mlflow: .venv/.installed ## Show in the browser what logger=[csv,mlflow] has logged
	@if ! .venv/bin/python -c 'import flask' 2>/dev/null; then \
		echo "error: MLflow's pages need more of it than is installed: make install EXTRAS=mlflow" >&2; \
		exit 1; \
	fi
	.venv/bin/mlflow ui --backend-store-uri sqlite:///logs/mlflow.db $(value ARGS)

report: .venv/.installed ## Write a run or a sweep as one HTML page (RUN=logs/demo/…)
	@.venv/bin/python -m litvision.report $(value RUN)

rerun: .venv/.installed ## Repeat a run from its folder and compare the metrics (RUN=logs/demo/…)
	.venv/bin/python -m litvision.rerun $(value RUN)

## Develop

bench: .venv/.installed ## Measure speed and memory, a table each (ARGS='step loader')
	.venv/bin/python -m benchmarks $(value ARGS)

# Two processes of one thread each take three fifths of the time of one with two.
test: .venv/.installed ## Run the fast tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/pytest -n logical --maxprocesses 8 --dist loadfile $(value ARGS)

test-slow: .venv/.installed ## Run the tests that train for longer
	PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -m slow $(value ARGS)

test-browser: .venv/.installed ## Look at TensorBoard and at a report with chromium
	.venv/bin/pytest -m browser $(value ARGS)

check: .venv/.installed ## Check format, lint, types and known weaknesses; change nothing
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	@.venv/bin/python .ci/audit.py

format: .venv/.installed ## Format the code and mend what the linter can
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

rename: .venv/.installed ## Make the project yours: package, imports, docs (NAME=my_project)
	@.venv/bin/python -m litvision.rename $(NAME)
	@.venv/bin/ruff format --quiet; .venv/bin/ruff check --quiet --fix --exit-zero
	@.venv/bin/ruff check --quiet --add-noqa # lines that a longer name makes too long
	@$(ready); $$uv pip uninstall --quiet --python .venv/bin/python litvision; rm -f .venv/.installed

# Not behind `install`: where pyproject.toml and the lock contradict each other, nothing installs.
lock: ## Pin what pyproject.toml asks for in requirements.lock (ARGS=--upgrade)
	@$(ready); $$uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--generate-hashes --custom-compile-command 'make lock' pyproject.toml -o requirements.lock $(value ARGS)

clean: ## Remove .venv, builds and caches; data/ and logs/ stay
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .coverage
	find $(wildcard src tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- How `install` works -------------------------------------------------------------------------

# Sets $uv and sees to a working .venv. uv is the one on the PATH, else one that pip puts into
# .venv. A candidate has to answer, not just to exist: version managers put a stand-in on the PATH
# for every Python they know, whether or not it is switched on.
define ready
uv=uv; uv --version >/dev/null 2>&1 || uv=.venv/bin/uv; \
if ! { $$uv --version && .venv/bin/python --version; } >/dev/null 2>&1; then \
	for name in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
		python=$$("$$name" -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' \
			2>/dev/null) && break; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Litvision needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not: install one," \
			"or name it: make install PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if [ $$uv = uv ]; then \
		uv venv --quiet --clear --python "$$python" .venv; \
	else \
		"$$python" -m venv --clear .venv && .venv/bin/python -m pip install --quiet uv; \
	fi || exit 1; \
fi
endef

# The stamp goes first and comes back last, so that an install that was cut short is done again.
# .venv/.torch holds the build of torch that was asked for last. Another build, or an unknown one,
# has to go first: 2.15.0 and 2.15.0+cpu both satisfy ==2.15.0, and uv leaves what satisfies alone.
# The lock constrains and does not list: a CPU build needs none of the CUDA packages in it. Its hashes
# hold for what comes with it; builds of torch from elsewhere are other files.
.venv/.installed: pyproject.toml requirements.lock \
		$(if $(TORCH),$(if $(filter $(TORCH),$(shell cat .venv/.torch 2>/dev/null)),,FORCE)) \
		$(if $(EXTRAS),$(if $(filter $(EXTRAS),$(shell cat .venv/.extras 2>/dev/null)),,FORCE))
	@extras=$(or $(EXTRAS),$$(cat .venv/.extras 2>/dev/null)); \
	had=$$(cat .venv/.torch 2>/dev/null); torch=$(or $(TORCH),$${had:-default}); \
	[ -e $@ ] || had=; rm -f $@; \
	$(ready); \
	echo $$torch > .venv/.torch; \
	if [ "$$extras" ]; then echo "$$extras" > .venv/.extras; fi; \
	if [ $$torch = default ]; then \
		backend=; lock=requirements.lock; \
	else \
		backend="--torch-backend $$torch"; lock=.venv/.lock; \
		awk '/^[a-z]/ { other = /^(torch|torchvision|triton|pytorch-triton|nvidia|cuda)[=-]/ } \
			other && /--hash=/ { next } { if (other) sub(/ \\$$/, ""); print }' \
			requirements.lock > $$lock; \
	fi; \
	if [ $$torch != "$$had" ]; then \
		$$uv pip uninstall --quiet --python .venv/bin/python torch torchvision; \
	fi; \
	if $$uv pip install --python .venv/bin/python --constraint $$lock $$backend \
		-e ".[dev,sweep,export$${extras:+,$$extras}]"; then \
		touch $@; \
	else \
		if [ "$$backend" ]; then \
			rm .venv/.torch; \
			echo "TORCH=$$torch comes from PyTorch's own package index, which could not be reached or" \
				"does not have it: run plain 'make install' for torch from the ordinary index." >&2; \
		fi; \
		exit 1; \
	fi
