# `make demo` and `make test` are all that a newcomer needs; both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

# Threads are torch's and ours to choose; their number changes the rounding of results.
export MPLBACKEND ?= agg

.PHONY: checkpoints demo test shapes test-slow test-distributed test-gpu test-simulated test-latest \
	test-processors fuzz lint types doctest docs rows benchmarks bench-check check clean coverage

demo: $(READY)  ## train a GRU, follow K, P and P K P* over training (one to two minutes)
	$(BIN)/python examples/dynamic_collapse.py --output outputs

test: $(READY)  ## the test suite without the slow tests (about nine minutes), a core for each worker
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical --ignore=tests/distributed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/distributed  # starts its own

shapes: $(READY)  ## tests of linalg, engines and operators with every annotation checked
	KPOPS_CHECK_SHAPES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical \
		tests/operators tests/engines tests/spectral/test_eig_svd.py tests/spectral/test_rank.py \
		tests/spectral/test_registries.py tests/spectral/test_norms.py tests/spectral/test_gramian.py

coverage: $(READY)  ## the share of lines and branches that the test suite runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical --cov --cov-report=term -q

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -m slow

test-distributed: $(READY)  ## the contract of operators spread over two processes (one to two minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m torch.distributed.run --standalone \
		--nproc-per-node 2 tests/distributed/contract.py

test-gpu: $(READY)  ## every test that is parametrised over devices, on the GPU
	$(BIN)/python -m pytest -m gpu

test-simulated: $(READY)  ## the same tests without a GPU, on the simulated device of tests/simulated.py
	KPOPS_SIMULATED_DEVICE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu -n logical

test-latest:  ## tests against the newest releases, unpinned; PyTorch's default build is several GB
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --upgrade --editable '.[test,dask,slurm,icechunk,koopman]'
	.venv-latest/bin/python -m pytest

test-processors: $(READY)  ## the suite as other processors round, by one thread, by two, and busy
	$(BIN)/python tests/processors.py

SEED ?= 0
fuzz: $(READY)  ## 10,000 random models and spectra against dense references (ten minutes)
	KPOPS_FUZZ_CASES=10000 $(BIN)/python -m pytest tests/fuzz --hypothesis-seed=$(SEED)

doctest: $(READY)  ## the examples in docstrings and in the pages of the documentation
	$(BIN)/python -m pytest --doctest-modules --doctest-glob='*.rst' --ignore=docs/gallery \
		--ignore=docs/_build kpops docs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## the documentation, into docs/_build/html; by one thread, so that figures repeat
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

rows: $(READY)  ## small versions of two rows of the page Reproduction (half a minute)
	$(BIN)/python -m reproduction measure --quick --only ranks_before_training state_change

checkpoints: $(READY)  ## train the networks of the gallery
	$(BIN)/python examples/networks.py

benchmarks: $(READY)  ## products beside other ways to them, growth, memory, spectra (an hour)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python -m benchmarks

bench-check: $(READY)  ## fifteen ratios of times beside the committed ones (a minute or two)
	$(BIN)/python -m benchmarks.watch

check: lint types test test-slow test-distributed doctest docs  ## what CI runs, but for the demo

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,docs,dask,slurm,icechunk,data,koopman]'
	touch $@

clean:
	rm -rf $(VENV) .venv-latest docs/_build docs/api docs/gallery outputs .pytest_cache .mypy_cache .ruff_cache
	rm -rf kpops/engines/__pycache__  # Numba does not see when a function in another file changes
