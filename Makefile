# Two commands are enough: `make notebooks` and `make test`. Both set up .venv first; nothing is set up twice.
PYTHON ?= python3
export ONLY DATA_DIR SET THEME REPOSITORY
# On Linux, memory that a training step frees is kept for the next one, where glibc would hand it back and have the kernel
# clear it anew, page by page: with two trainings side by side, the CRNN's takes a tenth less time. Other systems do not
# read these.
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 2147483647

RUN = .venv/bin/python -m shared_utils.notebooks

help:
	@echo 'make notebooks    run every notebook on the built-in demo data and show a table of results'
	@echo '                  ONLY=audio_transformer_pipeline DATA_DIR=path/to/data SET="EPOCHS=3 SEED=1"'
	@echo 'make lab          open JupyterLab'
	@echo 'make slides       make a .pptx of all notebooks, and of each (or only of the one in ONLY); THEME=dark: light on dark'
	@echo 'make compare      put all saved runs (or those of the notebook in ONLY) on one page: figures/compare.html'
	@echo 'make results      run with the published settings on real data: ONLY=... DATA_DIR=...'
	@echo 'make app          try the models in a browser: record or upload a sound, type a sentence'
	@echo 'make benchmarks   compare front-end, decoding and training with the usual ways'
	@echo 'make badges       let the notebooks be opened in Colab, once they lie on GitHub: REPOSITORY=owner/name'
	@echo 'make test         run the tests'
	@echo 'make perforatedai get the package perforatedai into a folder of its own, for DENDRITES="perforatedai"'

notebooks: .venv/.installed
	@$(RUN) run --only "$$ONLY" --data-dir "$$DATA_DIR" --set "$$SET"

results: .venv/.installed
	@$(RUN) results --only "$$ONLY" --data-dir "$$DATA_DIR"

slides: .venv/.installed
	@$(RUN) slides --only "$$ONLY" --theme "$$THEME"

compare: .venv/.installed
	@$(RUN) compare --only "$$ONLY"

# An extra that the notebooks do not need; it comes with the first `make app`.
app: .venv/.app
	@.venv/bin/python -m shared_utils.app

.venv/.app: .venv/.installed
	@echo 'Getting Gradio for the page: half a minute, 120 MB on disk.'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 -c constraints.txt -e '.[app]' \
		>.venv/app.log 2>&1 || { echo 'Gradio cannot be had, which needs a network this once;' \
			'pip says why in .venv/app.log.'; exit 1; }
	@touch $@

badges: .venv/.installed
	@$(RUN) badges "$$REPOSITORY"

lab: .venv/.installed
	@PYTHONPATH="$(CURDIR)" .venv/bin/python -m jupyter lab

benchmarks: .venv/.installed
	@.venv/bin/python -m benchmarks.run

# Without its dependencies and outside .venv: they would replace PyTorch there, and break transformers.
perforatedai: .venv/.installed
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .perforatedai \
		perforatedai==3.2.9

# Two processes of one thread each: with two threads each they would wait for each other.
test: .venv/.installed
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist load --maxschedchunk 1

# The stamp is written last. A set-up that was cut short leaves .unfinished behind and starts from nothing the next time,
# except in a .venv that someone else has made: that is never deleted, pip goes on with it.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
		{ echo 'Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is' "$$($(PYTHON) --version 2>&1 | tail -1)." \
			'Name another one: make PYTHON=python3.12'; exit 1; }
	@if test -e .venv/.unfinished && test -e .venv/.made_by_make; then rm -rf .venv; fi
	@if test ! -e .venv; then mkdir .venv && touch .venv/.made_by_make; fi
	@rm -f $@ && touch .venv/.unfinished
	@echo 'Setting up .venv with the pinned packages: two to three minutes, 6 GB on disk.'
	@$(PYTHON) -m venv .venv
	@PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[dev,offline]'
	@rm .venv/.unfinished && touch $@

.PHONY: help notebooks results slides compare app badges lab benchmarks perforatedai test
