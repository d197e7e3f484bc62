# Each target sets up what it needs. ARGS is handed to pytest: make accept ARGS="--steph-model Qwen/Qwen3-1.7B"
.PHONY: setup doctor accept test lint clean
PYTHON ?= python3

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" bash tools/setup.sh

doctor: setup
	@.venv/bin/python -m steph.cli doctor $(ARGS)

accept: setup
	@bash tools/accept.sh $(ARGS)

test: setup
	.venv/bin/python -m pytest -m "not gpu" -n 2 --dist loadfile $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
