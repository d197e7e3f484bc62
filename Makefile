# Each target sets up what it needs. ARGS is handed to pytest: make accept ARGS="--steph-model Qwen/Qwen3-1.7B"
PROGRAMS_INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
.PHONY: setup doctor accept test test-planted test-programs test-rehearsals test-llamafactory test-axolotl test-unsloth coverage lint clean docs
PYTHON ?= python3

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" bash tools/setup.sh

doctor: setup
	@.venv/bin/python -m steph.cli doctor $(ARGS)

accept: setup
	@bash tools/accept.sh $(ARGS)

test: setup
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -m "not gpu" -ra -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# what the witness sees in all variants of the reference pipeline, of which make test runs the first of each kind, and in
# a stranger's program; the defects also through whole rehearsals on the CPU: half an hour on 2 cores
test-planted: setup
	STEPH_TEST_PLANTED=1 .venv/bin/python -m pytest tests/unit/pipeline/test_witness_planted.py \
	  tests/unit/pipeline/test_witness_programs.py tests/unit/pipeline/test_witness_rehearsed.py -n 2 $(ARGS)

# whole rehearsals on the CPU beside the one of make test: answers learnt by heart, two ranks under torchrun, a stranger's
# pipeline on a model of the Hub, and a Llama, a Gemma and a Phi twin, each from its config.json: two minutes on 2 cores
test-rehearsals: setup
	STEPH_TEST_REHEARSALS=1 .venv/bin/python -m pytest tests/unit/test_rehearsal.py \
	  tests/unit/pipeline/test_two_ranks.py -n 2 $(ARGS)

# trl, lm_eval and a notebook's export as they are, in an environment of their own (2 GB), each through whole rehearsals
test-programs: setup
	test -x .venv-programs/bin/lm_eval || (.venv/bin/python -m venv .venv-programs && \
	  .venv-programs/bin/pip install -c constraints.txt $(PROGRAMS_INDEX) torch transformers peft accelerate bitsandbytes trl==1.16.0 datasets==5.2.0 lm_eval==0.4.13)
	STEPH_TEST_PROGRAMS=$(CURDIR)/.venv-programs/bin .venv/bin/python -m pytest -ra tests/unit/pipeline/test_witness_programs.py \
	  tests/unit/pipeline/test_harness_programs.py tests/unit/pipeline/test_described_programs.py $(ARGS)

# LLaMA-Factory and axolotl as they are, from the example folders, each in an environment of its own (2 GB); the pins are theirs
test-llamafactory: setup
	test -x .venv-llamafactory/bin/llamafactory-cli || (.venv/bin/python -m venv .venv-llamafactory && \
	  .venv-llamafactory/bin/pip install $(PROGRAMS_INDEX) llamafactory==0.9.5 bitsandbytes==0.50.2 lm_eval==0.4.13)
	STEPH_TEST_PROGRAMS=$(CURDIR)/.venv-llamafactory/bin .venv/bin/python -m pytest -ra tests/unit/pipeline/test_factory_programs.py $(ARGS)

test-axolotl: setup
	test -x .venv-axolotl/bin/axolotl || (.venv/bin/python -m venv .venv-axolotl && \
	  .venv-axolotl/bin/pip install $(PROGRAMS_INDEX) axolotl==0.19.0)
	STEPH_TEST_PROGRAMS=$(CURDIR)/.venv-axolotl/bin .venv/bin/python -m pytest -ra tests/unit/pipeline/test_factory_programs.py $(ARGS)

# Unsloth as it is, from its example folder, on the CPU (3 GB with TORCH_INDEX, else 8); with STEPH_TEST_GPU=1 on a card
test-unsloth: setup
	test -x .venv-unsloth/bin/unsloth || (.venv/bin/python -m venv .venv-unsloth && \
	  .venv-unsloth/bin/pip install $(PROGRAMS_INDEX) unsloth==2026.10.9)
	STEPH_TEST_PROGRAMS=$(CURDIR)/.venv-unsloth/bin .venv/bin/python -m pytest -ra tests/unit/pipeline/test_unsloth_programs.py $(ARGS)

# the same tests half as fast, and which branches of plugins/steph none of them takes; fails under 95 %
coverage: setup
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 .venv/bin/coverage run -m pytest -m "not gpu" -ra -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	.venv/bin/coverage combine --quiet
	rm -f .coverage.*  # of processes that were killed while they wrote them
	.venv/bin/coverage report

# the pages that tests hold to the code
docs: setup
	PYTHONPATH=plugins .venv/bin/python tools/checks_page.py ja docs/checks.md
	PYTHONPATH=plugins .venv/bin/python tools/checks_page.py en docs/checks.en.md
	PYTHONPATH=plugins .venv/bin/python tools/causes_page.py ja docs/causes.md
	PYTHONPATH=plugins .venv/bin/python tools/causes_page.py en docs/causes.en.md
	PYTHONPATH=plugins .venv/bin/python tools/schemas.py record docs/record.schema.json
	PYTHONPATH=plugins .venv/bin/python tools/schemas.py summary docs/summary.schema.json
	PYTHONPATH=plugins .venv/bin/python tools/key_tables.py
	PYTHONPATH=tests/unit .venv/bin/python -m planted ja docs/planted-traps.md
	PYTHONPATH=tests/unit .venv/bin/python -m planted en docs/planted-traps.en.md
	.venv/bin/python tools/examples.py

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
