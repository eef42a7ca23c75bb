# Everything runs in .venv, which the first target creates; PYTHON picks the interpreter (>= 3.11).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without setuptools' advice on folders in whatever directory Python is started, which is not meant here.
INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --editable
STAMP := $(VENV)/.installed

.PHONY: demo test test-long test-slurm parity lint format docs clean

demo: $(STAMP)
	$(BIN)/python -m emseg_jax.demo $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not long and not parity and not slurm" -n 2 --dist loadfile --ignore=tests/models
	EMSEG_TEST_QUICK_COMPILE=1 $(BIN)/python -m pytest -m "not long and not parity and not slurm" -n 2 --dist loadfile tests/models

# Against PyTorch, torchvision, timm and Keras, which the package itself does not need.
parity: $(STAMP)
	$(INSTALL) ".[dev,parity,onnx]"
	$(BIN)/python -m pytest -m parity -n 2 --dist loadfile

# launch/slurm.sbatch on a real SLURM: root, and apt-get install slurm-wlm munge.
test-slurm: $(STAMP)
	$(BIN)/python -m pytest -m slurm -s

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long -s

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'emseg_jax needs python 3.11 or newer; try make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) ".[dev]"
	touch $@

# The manual, in site/.
docs: $(STAMP)
	$(INSTALL) ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info runs/demo
