# The names for what is done with this repository; `make help` lists them.
# .ci/run calls these and nothing else: there is no second definition of "green".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# Any of these can be given on the command line: make test PYTHON=python3.13
PYTHON ?= python3
VENV ?= .venv
TOOLS ?= .tools
# --locked: Cargo.lock is what was tested. After editing Cargo.toml: make test LOCKED=
LOCKED ?= --locked
# Processes of the Python tests; each starts servers of its own.
TEST_PROCESSES ?= 2
# Inputs for each decoder, and seconds for one of them.
FUZZ_RUNS ?= 10000000
FUZZ_TIMEOUT ?= 5
CARGO_DENY_VERSION := 0.20.2

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PATH := $(abspath $(TOOLS))/bin:$(PATH)
# The bindings are checked against the interpreter they are built for.
PYO3 := PYO3_PYTHON=$(BIN)/python

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find src -type f -not -name '.*')
# Type-checked beside the package, where they exist.
TYPED := python/eventbus $(wildcard examples/*.py examples/background_progress examples/cluster \
	tests-py/typing_samples)

##@ Everyday

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build ## Build and run the demo on the memory bus; nothing else is needed
	@$(BIN)/python examples/git_history.py

.PHONY: demo-cluster
demo-cluster: build ## Managers and agents on a Redis of their own, one killed half-way; URL=… for another bus
	@$(if $(URL),,scripts/servers redis)
	@$(BIN)/python examples/cluster/run.py $(if $(URL),--url $(URL))

.PHONY: test
test: servers build $(VENV)/.dev test-rust test-python ## Run every test of both languages

.PHONY: lint
lint: lint-rust lint-python ## Formatters, clippy, layer guards, ruff, mypy, pyright, stubtest

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation into site/, warnings are errors
	@# Not --quiet: it hides warnings from --strict as well.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: site/index.html"

.PHONY: format
format: $(VENV)/.dev ## Rewrite Rust and Python sources in the house style
	cargo fmt
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

##@ Pieces

.PHONY: venv
venv: $(VENV)/.ready ## Create the virtual environment (Python 3.11 or newer)

.PHONY: dev
dev: build $(VENV)/.dev ## Everything for work on eventbus: extension, test tools, linters

.PHONY: build
build: $(VENV)/.built ## Build the extension into the virtual environment; a no-op when nothing changed

.PHONY: servers
servers: ## Install the servers that the tests start, where they are missing
	@scripts/servers

.PHONY: test-rust
test-rust: ## Rust tests without Python (cargo-nextest when installed), then doctests
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -x; cargo nextest run $(LOCKED) --no-fail-fast; \
	else \
		set -x; cargo test $(LOCKED) --no-fail-fast --lib --tests; \
	fi
	cargo test $(LOCKED) --doc

.PHONY: browser
browser: ## Install the browser of the tests, where it is missing
	@scripts/servers browser

.PHONY: test-python
test-python: servers browser build $(VENV)/.dev ## Python tests
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

.PHONY: lint-rust
lint-rust: guard $(VENV)/.ready ## rustfmt, clippy per feature set, guards
	cargo fmt --check
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	$(PYO3) cargo clippy $(LOCKED) --all-targets --features python -- -D warnings

.PHONY: lint-python
lint-python: build $(VENV)/.dev ## ruff, mypy --strict, pyright, stubtest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(TYPED)
	$(BIN)/pyright
	MYPYPATH=python $(BIN)/python -m mypy.stubtest eventbus._eventbus \
		--mypy-config-file pyproject.toml --allowlist tests-py/stubtest-allowlist.txt

.PHONY: guard
guard: ## The core knows no Python: neither in its dependencies nor in its sources
	@tree=$$(cargo tree $(LOCKED) -e normal --prefix none); \
	if grep '^pyo3' <<<"$$tree"; then \
		echo "guard: pyo3 is in the graph without the python feature; make its dependent optional" >&2; exit 1; \
	fi
	@if grep -rn pyo3 src --include='*.rs' --exclude-dir=python; then \
		echo "guard: pyo3 outside src/python; bindings live in src/python only" >&2; exit 1; \
	fi
	@echo "guard: no pyo3 in the core"

.PHONY: deny
deny: tools ## Bans, licences and sources of all Rust dependencies
	cargo deny $(LOCKED) --log-level error check --hide-inclusion-graph bans licenses sources

##@ Now and then

.PHONY: bench
bench: servers build $(VENV)/.bench $(VENV)/.bench-arq ## Core and Python benchmarks beside their peers
	cargo bench $(LOCKED)
	$(BIN)/python -m benches

.PHONY: chaos
chaos: servers build $(VENV)/.dev ## The long tests with full counts
	cargo test $(LOCKED) --release --lib --tests -- --ignored
	$(BIN)/python -m pytest -m chaos

.PHONY: fuzz
fuzz: build ## Give every decoder FUZZ_RUNS (10 million) inputs; needs cargo-fuzz and a nightly toolchain
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { \
		echo "fuzz: needs 'rustup toolchain install nightly' and 'cargo install cargo-fuzz --locked'" >&2; exit 1; }
	@# No sanitizer: the core has no unsafe code, and runs are twice as fast.
	@for target in $$(cargo +nightly fuzz list); do \
		mkdir -p fuzz/corpus/$$target; \
		(set -x; cargo +nightly fuzz run -s none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-runs=$(FUZZ_RUNS) -timeout=$(FUZZ_TIMEOUT) -max_len=16384 -verbosity=0 -print_final_stats=1) || exit 1; \
	done
	$(BIN)/python fuzz/decoders.py --runs $(FUZZ_RUNS) --timeout $(FUZZ_TIMEOUT)

.PHONY: audit
audit: $(VENV)/.ready ## Known vulnerabilities of both languages; says when a database could not be had
	@# The newest pip-audit on purpose: an old one misses what it should find.
	@$(PIP) install --upgrade pip-audit || echo "audit: pip-audit could not be installed" >&2
	@$(MAKE) --no-print-directory tools || echo "audit: cargo-deny could not be installed" >&2
	@scripts/audit $(BIN)

.PHONY: sanitize
sanitize: $(VENV)/.dev ## Tests of the bindings under AddressSanitizer; needs a nightly toolchain and libasan
	scripts/sanitize $(BIN)/python

.PHONY: wheel
wheel: $(VENV)/.maturin ## Build the release wheel into dist/
	$(BIN)/maturin build --release $(LOCKED) --interpreter $(BIN)/python --out dist
	@ls -l dist

.PHONY: lock
lock: $(VENV)/.ready ## Write requirements-*.lock anew from pyproject.toml, at the newest versions
	$(PIP) install uv
	@lock() { \
		{ echo "# Exact versions of the group '$$2' for every Python from 3.11 on; written by 'make lock'."; \
		  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
			--no-header --no-annotate --group $$2 "$${@:3}"; } > $$1.new; \
		mv $$1.new $$1; \
	}; \
	lock requirements-dev.lock all; \
	lock requirements-bench.lock bench --constraint requirements-dev.lock; \
	lock requirements-bench-arq.lock bench-arq

.PHONY: tools
tools: ## Install cargo-deny into .tools/ when it is not on the PATH (about a minute, once)
	@command -v cargo-deny >/dev/null || { \
		echo "tools: installing cargo-deny $(CARGO_DENY_VERSION) into $(TOOLS)/"; \
		env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
			cargo install --quiet --locked --profile dev --root $(abspath $(TOOLS)) \
			cargo-deny@$(CARGO_DENY_VERSION); }

.PHONY: clean
clean: ## Remove what was built (.tools/ stays)
	cargo clean --quiet
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests-py -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f python/eventbus/*.so

# Stamps: each is newer than what it was made from.

$(VENV)/.ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "eventbus needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make $(or $(MAKECMDGOALS),venv) PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Only what the build needs, so that the demo does not wait for the linters.
$(VENV)/.maturin: requirements-dev.lock | $(VENV)/.ready
	@echo "venv: installing maturin"
	@$(PIP) install $$(grep '^maturin==' requirements-dev.lock)
	@touch $@

$(VENV)/.dev: requirements-dev.lock | $(VENV)/.ready
	@echo "venv: installing test tools, linters and mkdocs"
	@$(PIP) install -r requirements-dev.lock
	@touch $@

$(VENV)/.bench: requirements-bench.lock | $(VENV)/.ready
	@echo "venv: installing the peers of the benchmarks"
	@$(PIP) install -r requirements-bench.lock
	@touch $@

# arq needs an older redis than its neighbours.
$(VENV)/.bench-arq: requirements-bench-arq.lock | $(VENV)/.ready
	@echo "venv: installing arq, a peer of the benchmarks, apart from the others"
	@$(BIN)/python -m venv --clear $(VENV)/arq
	@$(VENV)/arq/bin/python -m pip --disable-pip-version-check --quiet install -r requirements-bench-arq.lock
	@touch $@

$(VENV)/.built: $(RUST_SOURCES) pyproject.toml | $(VENV)/.maturin
	@echo "build: the extension, optimised"
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release $(LOCKED) --quiet
	@touch $@
