# Every target builds .venv itself. `make demo` and `make test` are the two that matter.
VENV   := .venv
PYTHON ?= python3
PY     := $(VENV)/bin/python

.PHONY: demo test test-all lint bench bench-operators bench-sparta bench-resin demo-sparta demo-resin clean

demo: $(VENV)/.demo
	$(PY) examples/demo.py

test: $(VENV)/.dev
	$(PY) -m pytest tests -m "not slow" -n auto --dist loadfile

# also whole models at full size, long sweeps, long fuzzing
test-all: $(VENV)/.dev
	$(PY) -m pytest tests

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m mypy

bench: $(VENV)/.bench
	$(PY) benchmarks/bench.py
	$(PY) benchmarks/report.py

bench-operators: $(VENV)/.bench
	$(PY) benchmarks/operators.py
	$(PY) benchmarks/report.py

bench-sparta: $(VENV)/.bench
	$(PY) benchmarks/sparta_bench.py

bench-resin: $(VENV)/.dev
	$(PY) benchmarks/resin_bench.py

demo-sparta: $(VENV)/.demo
	$(PY) examples/sparta_demo.py

demo-resin: $(VENV)/.dev
	$(PY) examples/resin_demo.py

$(VENV)/.torch: tools/install_torch.sh
	$(PYTHON) -m venv $(VENV)
	sh tools/install_torch.sh $(PY)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PY) -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PY) -m pip install --quiet --editable ".[demo,resin,dev]"
	touch $@

$(VENV)/.bench: $(VENV)/.torch pyproject.toml
	$(PY) -m pip install --quiet --editable ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) out
