# Everything runs in .venv, made on first use and again when the dependencies change.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-hostile test-adapters test-families test-wheel release-dry-run site lint format bench-evaluate bench-real compatibility real bench-weights bench-merge bench-curate bench-inject bench-train bench-align claims merge-claims inject-claims curate-claims train-claims align-claims testbed clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 18

# torch first and alone, so that whatever build of it the machine is set up for (CPU, CUDA) stays.
$(VENV)/stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "constraints.txt needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/stamp-run: pyproject.toml $(VENV)/stamp-torch
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/stamp-dev: pyproject.toml $(VENV)/stamp-torch
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/stamp-run

demo: $(VENV)/stamp-run  ## Tune a tiny aligned model and see what is lost: demo/report.html
	$(BIN)/alignkeep demo --out $(DEMO)

# Beside the environment and not in it: PEFT would import it into every process, which takes two seconds each time.
$(VENV)-quant/stamp: $(VENV)/stamp-dev
	$(PIP) --no-deps --target $(VENV)-quant bitsandbytes
	touch $@

# An environment over ours, whose packages it sees: other harnesses want other versions of some, and one more of each
# would make every start slower. Ours comes behind its own.
$(VENV)-eval/stamp: constraints-eval.txt $(VENV)/stamp-dev
	$(BIN)/python -m venv --without-pip $(VENV)-eval
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > $$($(VENV)-eval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	$(BIN)/python -m pip --python $(VENV)-eval/bin/python install --quiet --disable-pip-version-check \
	    -c constraints-eval.txt 'alignkeep[eval,inspect]'
	touch $@

# One file is one worker's (tests/conftest.py): fixtures are made once, and what counts processes is not disturbed.
test: $(VENV)/stamp-dev $(VENV)-quant/stamp $(VENV)-eval/stamp  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-hostile: $(VENV)/stamp-dev  ## Run a thousand cases of hostile input, in some minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow_hostile tests/hostile

test-families: $(VENV)/stamp-dev  ## Every verb on every architecture of transformers: docs/models.md
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m families --jobs 2 --page docs/models.md

test-adapters: $(VENV)/stamp-dev  ## Run every recipe of PEFT's LoRA through every verb (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'slow_adapters or not slow_adapters' tests/adapters

test-wheel: $(VENV)/stamp-dev  ## Build the wheel: is it small and whole?
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(BIN)/python tests/wheel_contents.py build/wheel/alignkeep-*.whl

release-dry-run:  ## All that a release does but publishing: dist/ (minutes; installs the wheel into an empty environment)
	PYTHON=$(PYTHON) .ci/release v$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/alignkeep/__init__.py) --dry-run

# Beside the environment: Zensical reads docstrings and does not import the package.
$(VENV)-site/stamp: site/requirements.txt
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet --disable-pip-version-check -r site/requirements.txt
	touch $@

site: $(VENV)-site/stamp  ## The documentation as a site, warnings are errors: build/site/html
	$(VENV)-site/bin/python site/build.py

lint: $(VENV)/stamp-dev  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(VENV)/stamp-dev  ## Rewrite the files in house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-evaluate: $(VENV)/stamp-run  ## Batched answers against one prompt at a time
	$(BIN)/python benchmarks/bench_evaluate.py

bench-real: $(VENV)/stamp-run  ## Training and answers of a real model: make bench-real MODEL=FOLDER DATA="FILE ..."
	$(BIN)/python benchmarks/bench_real.py --model $(MODEL) --data $(DATA)

compatibility: $(VENV)/stamp-dev  ## The ends of the ranges of versions, each in an environment of its own: docs/compatibility.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compatibility.py --root $(VENV)-compatibility

real: $(VENV)/stamp-dev  ## The study on a real model, in cells of at most 20 minutes: make real SOURCES=FOLDER
	$(BIN)/python benchmarks/real/study.py --sources $(SOURCES)
	$(BIN)/python benchmarks/real/table.py
	$(BIN)/python benchmarks/real/picture.py
	$(BIN)/python benchmarks/real/pairs.py

bench-weights: $(VENV)/stamp-run  ## A weighted training step against TRL's own
	$(BIN)/python benchmarks/bench_weights.py

# mergekit wants other versions of our dependencies: it gets an environment of its own.
$(VENV)-mergekit/stamp: $(VENV)/stamp-run
	$(PYTHON) -m venv $(VENV)-mergekit
	$(VENV)-mergekit/bin/pip install --quiet $$($(BIN)/pip freeze | grep '^torch==' | sed 's/+.*//')
	$(VENV)-mergekit/bin/pip install --quiet mergekit==0.1.5
	touch $@

bench-train: $(VENV)/stamp-run  ## An AlignGuard step against a plain LoRA step
	$(BIN)/python benchmarks/bench_train.py

bench-inject: $(VENV)/stamp-run  ## Writing an injected 1.7 GB checkpoint against plain copying
	$(BIN)/python benchmarks/bench_inject.py

bench-merge: $(VENV)/stamp-run $(VENV)-mergekit/stamp  ## Merging 1.7 GB against mergekit and plain copying
	$(BIN)/python benchmarks/bench_merge.py --mergekit $(VENV)-mergekit/bin/mergekit-yaml
	$(BIN)/python benchmarks/bench_merge.py --memory

inject-claims: $(VENV)/stamp-run  ## What an injection does on the testbed: docs/injection.md
	$(BIN)/python benchmarks/inject_claims.py --out claims/inject

claims: $(VENV)/stamp-run  ## What a plain tune does to the testbed: docs/testbed.md
	$(BIN)/python benchmarks/testbed_claims.py --out claims

merge-claims: $(VENV)/stamp-run  ## What merging brings back on the testbed: docs/merging.md
	$(BIN)/python benchmarks/merge_claims.py --out claims/merge

curate-claims: $(VENV)/stamp-run  ## What push and pull keeps out of poisoned data: docs/curation.md
	$(BIN)/python benchmarks/curate_claims.py --out claims/curate --tables vectors
	$(BIN)/python benchmarks/curate_claims.py --out claims/curate --tables methods,forms
	$(BIN)/python benchmarks/curate_claims.py --out claims/curate --tables reasons

bench-curate: $(VENV)/stamp-dev  ## A weight step of push and pull against POT, and its memory
	$(BIN)/python benchmarks/bench_curate.py
	$(BIN)/python benchmarks/bench_curate.py --memory

train-claims: $(VENV)/stamp-run  ## What AlignGuard keeps on the testbed: docs/alignguard.md
	$(BIN)/python benchmarks/train_claims.py --out claims/train
	$(BIN)/python benchmarks/train_claims.py --out claims/train --sets benign_drift --tables forgetting

align-claims: $(VENV)/stamp-run  ## GRAO beside SFT, DPO and GRPO on the testbed: docs/alignment.md
	$(BIN)/python benchmarks/align_claims.py --out claims/align --starts warm
	$(BIN)/python benchmarks/align_claims.py --out claims/align --starts cold --tables methods,floors

bench-align: $(VENV)/stamp-run  ## A GRAO step against TRL's GRPO step
	$(BIN)/python benchmarks/bench_align.py

testbed: $(VENV)/stamp-run  ## Train the shipped tiny models again (developers only)
	$(BIN)/python -m alignkeep.testbed.build --seed 0 --out src/alignkeep/testbed/models

clean:  ## Remove what the tools made; the environment stays
	rm -rf build dist claims $(DEMO) .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
