# Everything runs from .venv, which the first target that needs it makes. PYTHON: 3.10 to 3.12.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RESULTS ?= demo-results
# Two packages own the folder cv2; the one that needs no libGL must be the last one installed.
HEADLESS = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	--force-reinstall --no-deps opencv-python-headless

.PHONY: demo test test-ray test-rest lint bench bench-queries chaos bench-scale bench-gpu archive docs clean

demo: $(VENV)/.installed  ## scan the sample archive and show what was found
	$(BIN)/deepsweep scan tests/archive --out $(RESULTS) --rescan || [ $$? -eq 3 ]
	@echo; echo "Exit code 3: some videos failed, as the broken ones of the sample archive must."

test: $(VENV)/.installed-dev lint  ## every check
	$(MAKE) --jobs=2 --no-print-directory test-ray test-rest

# Scans take turns, since each fills the machine now and then and waits in between; what needs no Ray fills the gaps.
test-ray: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m ray

test-rest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not ray"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

chaos: $(VENV)/.installed-dev  ## 20 scans with lost nodes, killed workers and drivers, and a bucket that fails
	$(BIN)/python -m tests.chaos --schedules 20 --seed 1

bench: $(VENV)/.installed-dev  ## video-seconds per second: the scan, its stages, ffmpeg, the plain script
	$(BIN)/python -m tests.bench

bench-queries: $(VENV)/.installed-dev  ## seconds for `flagged` and `summary` of ten million frames, and to open a report
	$(BIN)/python -m tests.bench_queries
	$(BIN)/python -m tests.bench_report

bench-scale: $(VENV)/.installed-dev  ## a million keys and 100,000 spans; 1, 2, 4 and 8 nodes: 40 minutes
	$(BIN)/python -m tests.bench_scale

bench-gpu: $(VENV)/.installed-dev  ## clips per second of the scoring actor, and of the bare network
	$(BIN)/python -m tests.bench_gpu

archive: $(VENV)/.installed-dev  ## draw the sample archive again
	$(BIN)/python -m tests.zoo tests/archive

docs: $(VENV)/.installed-dev  ## write the help texts into docs/commands.md
	$(BIN)/python -m tests.docs

clean:
	rm -rf $(VENV) $(RESULTS) build dist *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(HEADLESS)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(HEADLESS)
	touch $@
