# The two commands to know: `make demo` and `make test`. Both set up .venv by themselves the first time and are quick afterwards.
#
#   PYTHON=python3.12 make demo     choose the Python (3.11 or newer) that the environment is made with
#   PIP_ARGS="..."                  extra arguments for pip, for example --extra-index-url of a CPU-only torch

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# Bound in the same command as everything else, so that no dependency can bring another torch and its gigabytes.
TORCH := "torch>=2.6,<2.14"
# Two test processes: more threads in each would only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
SCENE := src/qwen_vl/assets/demo/beach.png

.PHONY: help demo test test-slow test-browser docs check format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up, then ask the bundled model about a picture in English and Chinese and draw boxes"
	@echo "make test    set up, then run the tests"
	@echo "make test-slow  the tests that make test leaves out for their time; about an hour"
	@echo "make test-browser  the web page's tests, in a real browser (Chromium, or name it with QWEN_VL_CHROMIUM)"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make check   format, lint, types, import rules, unit tests"
	@echo "make format  rewrite the files in the project's format"
	@echo "make clean   delete the environment and everything that was made"

$(BIN)/python:
	@echo "==> Making the Python environment in $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; choose another: PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-core: pyproject.toml | $(BIN)/python
	@echo "==> Installing qwen-vl and what it needs (about a minute, once)"
	@$(PIP) -e . $(TORCH)
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(BIN)/python
	@echo "==> Installing qwen-vl with its training, serving and development tools (about a minute, once)"
	@$(PIP) -e ".[train,deepspeed,serve,eval,dev]" $(TORCH)
	@touch $@ $(VENV)/.stamp-core

demo: $(VENV)/.stamp-core
	@mkdir -p out
	@echo "==> The picture: $(SCENE). The model: the bundled nano, on this machine's CPU, offline."
	@echo "==> qwen-vl ask $(SCENE) \"What is in this picture?\""
	@$(BIN)/qwen-vl ask $(SCENE) "What is in this picture?"
	@echo "==> qwen-vl ask $(SCENE) \"这是什么?\""
	@$(BIN)/qwen-vl ask $(SCENE) "这是什么?"
	@echo "==> qwen-vl ground $(SCENE) \"狗\" --draw out/demo.png --force"
	@$(BIN)/qwen-vl ground $(SCENE) "狗" --draw out/demo.png --force
	@echo "==> Done. The boxes are drawn in out/demo.png; talk about your own picture with: $(BIN)/qwen-vl chat PICTURE"

test: $(VENV)/.stamp-dev
	@echo "==> Running the tests (two processes; slow, GPU, browser and network tests are left out)"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.stamp-dev
	@echo "==> Running the slow tests (two processes; about an hour)"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 -m "slow and not gpu and not browser and not network"

# An environment of its own: gradio wants an older Pillow than the tests' exact pixels.
.venv-web/.stamp: pyproject.toml
	@echo "==> Making the environment of the web page's tests in .venv-web (about two minutes, once)"
	@$(PYTHON) -m venv .venv-web
	@.venv-web/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[serve,web]" $(TORCH) "pytest>=9.2" "hypothesis>=6.170" "playwright>=1.65"
	@touch $@

test-browser: .venv-web/.stamp
	@echo "==> Driving the web page in a browser"
	@$(TEST_ENV) .venv-web/bin/python -m pytest -q -m browser tests/browser

# The site's tools alone: they read the sources and import nothing, so PyTorch is not needed.
.venv-docs/.stamp: pyproject.toml
	@echo "==> Making the environment of the documentation in .venv-docs (once)"
	@$(PYTHON) -m venv .venv-docs
	@$(PYTHON) -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' > .venv-docs/requirements.txt
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r .venv-docs/requirements.txt
	@touch $@

docs: .venv-docs/.stamp
	@echo "==> Building the site"
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --strict
	@echo "==> Done. Look at it with: python3 -m http.server --directory site"

check: $(VENV)/.stamp-dev
	@echo "==> Format"
	@$(BIN)/ruff format --check .
	@echo "==> Lint"
	@$(BIN)/ruff check .
	@echo "==> Types"
	@$(BIN)/mypy
	@echo "==> Import rules, generated pages and unit tests"
	@$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 tests/unit

format: $(VENV)/.stamp-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	@echo "==> Deleting the environment, caches and outputs"
	@rm -rf $(VENV) .venv-web .venv-docs site build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
