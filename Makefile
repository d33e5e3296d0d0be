# Every target makes its own environment first; nothing is done twice.
.PHONY: report test lab site study clean help
# Where it is set, each of a batch's many processes would compile torch anew: twice the start of every one.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

report: $(VENV)/.workbook ## train and evaluate baselines, AFD, ANCRA, AToP, CLAF and rep-spectral on the embedded digits -> reports/index.html
	$(BIN)/robustlib run --preset digits $(TWO)

test: $(VENV)/.test ## lint, types, test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/mypy
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

lab: $(VENV)/.workbook ## JupyterLab on notebooks/
	$(BIN)/robustlib lab

site: $(VENV)/.site ## the documentation -> docs/_build/html/index.html
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	$(BIN)/python benchmarks/site_check.py docs/_build/html

study: $(VENV)/.workbook ## hours: what papers claim on eight seeds of digits, ablations, a sweep, and the committed reference results
	$(BIN)/robustlib study digits-claims $(TWO)
	$(BIN)/robustlib study ancra-ablation $(TWO)
	$(BIN)/robustlib study afd-ablation $(TWO)
	$(BIN)/robustlib study afd-sweep $(TWO)
	$(BIN)/robustlib study claf-ablation $(TWO)
	$(BIN)/robustlib study claf-comparison $(TWO)
	$(BIN)/robustlib study spectral-grid $(TWO)
	$(BIN)/robustlib study spectral-network $(TWO)
	$(BIN)/robustlib study spectral-cnn $(TWO)
	$(BIN)/robustlib study spectral-transfer $(TWO)
	$(BIN)/robustlib study atop-ablation $(TWO)
	$(BIN)/python benchmarks/export_reference.py

# The environment: uv where it is installed, else uv bootstrapped by pip into the environment itself.
$(VENV)/bin/python:
ifneq ($(UV),)
	$(UV) venv --quiet --python "$(PYTHON)" $(VENV)
else
	@$(PYTHON) -c 'import sys; sys.exit("robustlib needs Python >= 3.11, this is " + sys.version.split()[0] + ": call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endif

TWO := --jobs 2 --gpus-per-task 0.5 # small trainings, which share a GPU where there is one

INSTALL = $(if $(UV),$(UV),$(BIN)/uv) pip install --python $(BIN)/python

# What compiles itself when it is first used (umap's functions take 20 CPU-seconds): once here, else in each of the first processes.
COMPILE = @$(BIN)/python -W ignore -c 'import matplotlib.pyplot, ipykernel.ipkernel, nbconvert, papermill, torch, torchvision; \
	from robustlib.representation.embedding import embed; embed(torch.rand(99, 9), torch.rand(99, 9))'

$(VENV)/.workbook: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --editable '.[workbook]'
	$(COMPILE)
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --editable '.[workbook,test,docs]'
	$(COMPILE)
	@touch $@ $(VENV)/.workbook $(VENV)/.site

$(VENV)/.site: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --editable '.[workbook,docs]'
	@touch $@ $(VENV)/.workbook

clean: ## remove the environment and caches; runs and reports stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build docs/_generated docs/api
