PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test types gemma space

setup: .venv/.requirements

run: setup
	$(BIN)/python app.py

# Gemma 3 270M's weights, 253 MB, under Gemma's terms of use: for the pack gemma-3-270m.
gemma: setup
	$(BIN)/python -m sod_core build gemma-3-270m --only weights

# A Space gets what the app runs with, and loses what it had before and is no more. hf has to be logged in, or HF_TOKEN
# set; `hf upload` and not git, because the hub takes large and binary files that way alone.
SPACE = README.md LICENSE app.py requirements.txt sod_core/* assets/*
NOT_SPACE = */__pycache__/* *.pyc *.pyi assets/screenshots/*
space: setup
	@test -n "$(REPO)" || { echo "Name the Space, for example: make space REPO=user/suppression-or-deletion"; exit 1; }
	$(BIN)/hf upload "$(REPO)" . --type space $(foreach name,$(SPACE),--include '$(name)') \
		$(foreach name,$(NOT_SPACE),--exclude '$(name)') --delete 'sod_core/*' --delete 'assets/*'

# Two processes take two gigabytes each at most. A file's tests share servers and a browser, so they stay together.
test: .venv/.requirements-test
	$(BIN)/python tests/browser.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Gradio writes a stub beside each module with a component of its own, and leaves it there when the module changes.
types: .venv/.requirements-test
	@find sod_core -name '*.pyi' -delete
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with PYTHON=, for example: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "Python's venv is needed; on Debian: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# A stamp is newer than the list it was made from, so nothing is installed twice.
.venv/.requirements: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/.requirements-test: requirements-test.txt .venv/.requirements
	$(BIN)/python -m pip install -r requirements-test.txt
	@touch $@
