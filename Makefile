# Everything happens in .venv, which is made when it is first needed: see scripts/make-venv.
#   make demo PROMPT='...'          make test ARGS='-k sse -x'          make PYTHON=/path/to/python3 test

PYTHON ?=
PROMPT ?= Explain gravity in one sentence.
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python -m
comma := ,
# A user's `user = true` in pip.conf would make pip refuse to install into a virtual environment.
export PIP_USER := 0
export PROMPT

.PHONY: help demo test test-vllm chaos check bench bench-planner bench-vllm native clean

help:
	@echo "make demo        fetch a small model and print its answer"
	@echo "make test        run all tests"
	@echo "make test-vllm   the tests that need vLLM, on one for the CPU that it makes (3.5 GB)"
	@echo "make chaos       16 callers, and a server that is killed 200 times"
	@echo "make check       lint, types, layers"
	@echo "make bench       run the benchmarks"
	@echo "make bench-vllm  vLLM next to llama-server, for 1 to 64 callers"
	@echo "make native      build a llama-server from source (12 minutes on two cores)"
	@echo "make clean       remove what make has made"

demo: $(VENV)/.has-embedded
	@$(RUN) rocllm run demo "$$PROMPT"

test: $(VENV)/.has-embedded-dev
	$(RUN) rocllm pull demo
	$(RUN) pytest -n 2 --dist worksteal $(ARGS)

# TORCH_INDEX: where PyTorch's wheels for the CPU are, if not where pip looks, nor in PyTorch's index.
test-vllm: $(VENV)/.has-embedded-dev
	$(RUN) rocllm pull demo
	@scripts/make-vllm $(VENV)/bin/python | { read -r python && read -r model && \
		ROCM_VLLM_PYTHON=$$python ROCLLM_TEST_SAFETENSORS=$$model \
		TORCHINDUCTOR_CACHE_DIR=$$(dirname "$$model")/torchinductor \
		$(RUN) pytest tests/vllm $(ARGS); }

chaos: $(VENV)/.has-embedded-dev
	$(RUN) rocllm pull demo
	$(VENV)/bin/python scripts/chaos.py $(ARGS)

check: $(VENV)/.has-embedded-dev
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) pytest -q tests/test_layers.py tests/test_public_names.py

# All takes about a quarter of an hour on two cores; ARGS='decode startup' for some of them.
bench: $(VENV)/.has-embedded-dev-bench
	@$(RUN) rocllm pull demo
	@$(VENV)/bin/python benchmarks/all.py $(ARGS)

# How well memory is predicted; with `make native` before it, on a second device too.
bench-planner: $(VENV)/.has-embedded-dev-bench
	@$(VENV)/bin/python benchmarks/planner.py

# vLLM next to llama-server, with the same weights, for 1 to 64 callers: docs/engines.md. What
# `make native` has built is taken before the wheel's: that is not built for this processor.
bench-vllm: $(VENV)/.has-embedded-dev
	$(RUN) rocllm pull demo
	@scripts/make-vllm $(VENV)/bin/python | { read -r python && read -r model && \
		demo=$$($(RUN) rocllm pull demo) && gguf=$$model-BF16.gguf && \
		{ [ -e "$$gguf" ] || $(VENV)/bin/python scripts/gguf_to_bf16.py "$$demo" "$$gguf"; } && \
		llama=$${XDG_CACHE_HOME:-$$HOME/.cache}/rocllm/native/bin/llama-server && \
		if [ -x "$$llama" ]; then llama=native=$$llama; else llama=embedded; fi && \
		ROCM_VLLM_PYTHON=$$python $(RUN) rocllm bench "$$demo" "$$gguf" "$$model" \
		--engines "$$llama,vllm" --callers 1,4,16,64 --prompt-lengths 128,512 $(ARGS); }

native: $(VENV)/.has-embedded
	@scripts/native $(VENV)/bin/python

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# .has-embedded-dev: the package in place, with the extras `embedded` and `dev`.
$(VENV)/.has-%: pyproject.toml scripts/make-venv
	@scripts/make-venv $(VENV) "$(PYTHON)"
	$(RUN) pip install --disable-pip-version-check -e '.[$(subst -,$(comma),$*)]'
	@touch $@
