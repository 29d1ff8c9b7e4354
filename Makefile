# Every target makes .venv and installs what it needs; a second call installs nothing.
#
#   make demo PYTHON=python3.12        another interpreter (3.11 or newer) for a new .venv
#   make test PYTEST="-k resume -x"    more arguments for pytest; "-n 0" is one process, as --pdb needs it
#
# uv, where it is installed, takes the build of torch that suits the machine: the CPU's where there is no GPU. pip takes
# the CUDA build on Linux, about 3 GB; let PIP_EXTRA_INDEX_URL name the CPU index that pytorch.org's "Get Started" page
# shows, and pip prefers that.

PYTHON ?= python3
PYTEST ?=
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv)
DEMO   := checkpoints/toyworld-robot
# A test process on each core, of one thread each (tests/conftest.py); one that is done takes tests over from another.
TEST   := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo studio test test-slow test-cpus test-busy lint format constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## teach the embedded base model the toy robot, then picture it in four places
	$(BIN)/python train.py configs/toyworld.yaml
	$(BIN)/python sample.py $(DEMO) \
	    "a photo of {subject} on the beach" "a photo of {subject} on the moon" \
	    "a photo of {subject} in the desert" "a photo of {subject} at night" \
	    --num-images 4 --out $(DEMO)/pictures
	@echo "The pictures are in $(DEMO)/pictures"

studio: $(VENV)/.installed-studio  ## a page on this machine: drop photos, train, generate (http://127.0.0.1:7870)
	$(BIN)/python -m dreambooth studio

test: $(VENV)/.installed-dev  ## the tests, ten minutes on two cores
	$(TEST) $(PYTEST)

test-slow: $(VENV)/.installed-dev  ## longer trainings, with what they print; all cells of the tables
	$(TEST) -o run_limit=3600 -m slow -rfEP $(PYTEST)

# Kernels differ between CPUs, and so does the rounding. Where a test is exact, it has to be so with each of them.
test-cpus: $(VENV)/.installed-dev  ## the tests with the kernels of three other kinds of CPU, the whole suite each time
	ONEDNN_MAX_CPU_ISA=AVX2 $(TEST) $(PYTEST)
	ATEN_CPU_CAPABILITY=avx2 $(TEST) $(PYTEST)
	MKL_CBWR=COMPATIBLE $(TEST) $(PYTEST)

test-busy: $(VENV)/.installed-dev  ## the tests beside two processes that spin
	@(while :; do :; done) & one=$$!; (while :; do :; done) & two=$$!; trap "kill $$one $$two" EXIT; $(TEST) $(PYTEST)

lint: $(VENV)/.installed-dev  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Two stamps, because the demo should not wait for tools: without [dev] it installs in two thirds of the time (74 s against
# 113 s on two busy cores). pip compiles file by file; doing it afterwards on all cores takes half as long.
# A stamp is touched last, so that an interrupted install is taken up again by the next call.
# Where uv cannot reach PyTorch's own index, pip installs.
define install
$(if $(UV),$(UV) pip install --python $(BIN)/python --torch-backend=auto -c constraints.txt -e "$(1)" ||) \
    $(BIN)/python -m pip install --no-compile -c constraints.txt -e "$(1)"
$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages carry templates that are no Python
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-studio: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[studio])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $(VENV)/.installed $(VENV)/.installed-studio $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is missing or older than 3.11: make ... PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A local version such as torch==2.13.0+cpu names one machine's build: the part after the + is cut off.
constraints:  ## resolve the newest versions in a new environment and pin them in constraints.txt
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m venv $$folder && $$folder/bin/python -m pip install -e ".[dev,ocr,onnx,openvino]" && \
	{ sed '/^#/!d' constraints.txt; \
	  $$folder/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+.*//'; } > $$folder/constraints.txt && \
	cp $$folder/constraints.txt constraints.txt

clean:  ## remove .venv and the tools' caches; runs under checkpoints/ stay
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
