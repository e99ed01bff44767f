# Two commands do all the set-up on a fresh Debian machine: `make demo` and `make test`.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
export CARGO_TERM_COLOR ?= auto

.PHONY: build demo test contract check bench install deps

build:
	$(CARGO) build --release

# Ten real messages through a real Postfix, in a directory of its own. KEEP=1 leaves everything running.
demo: deps
	$(CARGO) build --bin activity-milter --example demo
	KEEP=$(KEEP) target/debug/examples/demo

# Everything, the end-to-end tests with a real Postfix included.
test: deps check
	$(CARGO) test --lib --tests
	tests/contract/run

# The reference backend against docs/backend-api.yaml alone.
contract: deps
	$(CARGO) build
	tests/contract/run

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	packaging/check-licences

# Messages a second through one Postfix, with and without the milter.
bench: deps
	$(CARGO) build --release --bin activity-milter --example rates
	target/release/examples/rates

install: build
	install -D -m 755 target/release/activity-milter $(DESTDIR)$(PREFIX)/bin/activity-milter

# Debian packages that demo and tests need; nothing is asked, and the system's Postfix is not configured or started.
deps:
	packaging/install-deps
