# Everything a contributor types. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Outside the checkout: RocksDB takes ten minutes to compile, and a clean clone should not pay twice.
CARGO_TARGET_DIR ?= $(HOME)/.cache/saturn/target
export CARGO_TARGET_DIR

# The errors of tests say where they come from; backtraces of them only hide that.
export RUST_LIB_BACKTRACE ?= 0

BINARIES := saturn saturnctl
NEXTEST_PROFILE ?= $(if $(CI),ci,default)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Cargo tells what to rebuild by the files' times. Two checkouts that share the folder would take each other's
# results for their own; so when another checkout was built last, this one's files become new.
.PHONY: own-checkout
own-checkout:
	@mkdir -p $(CARGO_TARGET_DIR)
	@if [ "$$(cat $(CARGO_TARGET_DIR)/last-checkout 2>/dev/null)" != "$(CURDIR)" ]; then \
		find . -path ./target -prune -o \( -name '*.rs' -o -name '*.proto' \) -print0 | xargs -0 touch; \
		echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/last-checkout; \
	fi

.PHONY: build
build: build-deps own-checkout ## release binaries in ./bin/
	cargo build --locked --release --package saturn-node --package saturn-ctl
	mkdir -p bin
	install -m 0755 $(addprefix $(CARGO_TARGET_DIR)/release/,$(BINARIES)) bin/

.PHONY: run
run: build ## a three-zone cluster on this machine, until Ctrl-C
	exec ./bin/saturn demo

.PHONY: test
test: test-deps lint test-binaries ## what CI runs: format, lints, tidy, unit and black-box tests
	cargo nextest run --locked --workspace --profile $(NEXTEST_PROFILE)

# The black-box tests start the binaries. They are built together with all tests: one set of features,
# so that RocksDB is compiled once.
.PHONY: test-binaries
test-binaries: own-checkout
	cargo build --locked --workspace --all-targets

CUTS ?= 200
.PHONY: power-cuts
power-cuts: test-deps test-binaries ## cut the power of the storage engine 200 times (CUTS=n), as root
	SATURN_CUTS=$(CUTS) cargo nextest run --locked --workspace --no-capture -E 'test(power_cuts_at_random_moments)'

SEEDS ?= 10000
.PHONY: simulate
simulate: own-checkout ## 10,000 simulated clusters with faults and moves of shards (SEEDS=n), or one (SATURN_SEED=n)
	SATURN_SEEDS=$(SEEDS) cargo test --locked --package saturn-replication --test sim -- --nocapture no_seed

.PHONY: lint
lint: own-checkout ## format check, clippy without warnings, cargo xtask tidy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo run --quiet --locked --package xtask -- tidy

.PHONY: fmt
fmt: ## format the Rust code
	cargo fmt --all

.PHONY: bench-ingest
bench-ingest: build ## samples per second, CPU and bytes per sample of one node and of three
	cargo build --locked --release --package saturn-benches --bin ingest
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/ingest $(BENCH_FLAGS)

# The recording takes an hour; one that is there is used again. Needs the Debian packages that the tests need.
RECORDING ?= $(HOME)/.cache/saturn/recording

.PHONY: bench-storage
bench-storage: build test-deps ## CPU, disk and memory of samples, beside Prometheus and VictoriaMetrics
	cargo build --locked --release --package saturn-benches --bin storage
	test -s $(RECORDING) || SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/storage record $(RECORDING)
	$(CARGO_TARGET_DIR)/release/storage engine --recording $(RECORDING)
	$(CARGO_TARGET_DIR)/release/storage engine
	$(CARGO_TARGET_DIR)/release/storage backfill
	$(CARGO_TARGET_DIR)/release/storage scan
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/storage disk --recording $(RECORDING)
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/storage disk
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/storage million $(BENCH_FLAGS)

.PHONY: bench-promql
bench-promql: test-deps ## samples per second of PromQL evaluation, beside Prometheus
	cargo build --locked --release --package saturn-benches --bin promql
	$(CARGO_TARGET_DIR)/release/promql $(BENCH_FLAGS)

.PHONY: bench-ring
bench-ring: build ## idle cost of many shards, and how long a dead node's shards have no leader
	cargo build --locked --release --package saturn-benches --bin ring
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/ring $(BENCH_FLAGS)

.PHONY: soak
soak: build ## an hour at half of the peak, every answer compared with a model
	cargo build --locked --release --package saturn-benches --bin soak
	SATURN_BIN_DIR=$(CURDIR)/bin $(CARGO_TARGET_DIR)/release/soak $(BENCH_FLAGS)

.PHONY: build-deps test-deps
build-deps:
	@xtask/install-deps.sh build
test-deps:
	@xtask/install-deps.sh test

.PHONY: clean-bin
clean-bin: ## remove ./bin/
	rm -rf bin
