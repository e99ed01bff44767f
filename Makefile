# Two commands do all the set-up on a fresh Debian machine: `make demo` and `make test`.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
export CARGO_TERM_COLOR ?= auto

.PHONY: build demo test cluster torture torture-queue torture-crash torture-syncs torture-doors torture-model contract check advisories bench deb rpm package-test booted-test dist install deps

build:
	ACTIVITY_MILTER_COMMIT=$$(git rev-parse --short=10 HEAD 2>/dev/null || sed -n '/^[0-9a-f]*$$/p' packaging/commit) \
	    $(CARGO) build --release

# Eleven real messages through a real Postfix, in a directory of its own. KEEP=1 leaves everything running.
# BACKEND=severa: into a fake of Visma Severa instead of the sink.
demo: deps
	$(CARGO) build --bin activity-milter --example demo
	KEEP=$(KEEP) BACKEND=$(BACKEND) target/debug/examples/demo

# Everything, the end-to-end tests with a real Postfix included.
test: deps check
	CARGO=$(CARGO) tests/run
	tests/contract/run

# Three database servers, two Postfix, two services that take mail, two that deliver it, and 26 faults over 20,000 messages: the
# table of docs/cluster.md, in a quarter of an hour; then what a long report and a million held activities cost. ONLY=killed,disk for some faults, MESSAGES=500 for fewer. `make test` has five.
cluster: deps
	ONLY=$(ONLY) MESSAGES=$(or $(MESSAGES),20000) $(CARGO) test --test e2e cluster::whole -- --ignored --nocapture
	$(CARGO) test --test queue_postgres a_ -- --ignored --nocapture --test-threads 1

# One machine, to which everything happens at once: 200 kills over 20,000 messages of each engine, the tables of docs/torture.md; half an
# hour. The seed is said first: SEED=7 for that one again, KILLS=20 and MESSAGES=2000 for less, ENGINE=file or database for one. `make test` has short ones.
torture: deps
	SEED=$(SEED) KILLS=$(KILLS) MESSAGES=$(MESSAGES) $(CARGO) test --test e2e torture::whole_$(ENGINE) -- --ignored --nocapture --test-threads 1

# The queue against its model, ten thousand cases; `make test` runs 200 of them.
torture-queue:
	PROPTEST_CASES=10000 $(CARGO) test --test queue_model

# kill -9 at every call of a queue that takes 200 messages, and errors of the disk there; hours.
# MESSAGES=50 and CALLS=20, of each kind of call, for less.
torture-crash:
	TORTURE_MESSAGES=$(or $(MESSAGES),200) $(if $(CALLS),TORTURE_CALLS=$(CALLS)) $(CARGO) test --test queue_crash -- --nocapture

# 2,000 clients, slow ones, 1,000 messages of 25 MiB, and 64 descriptors, at each door: a table of what the service takes and
# what honest mail hears; half an hour, and 30 GB of disk. ONLY=25-MiB:lmtp,silent for some, LASTS=60 seconds of each.
torture-doors: deps
	ulimit -n 20000; ONLY=$(ONLY) LASTS=$(or $(LASTS),60) $(CARGO) test --release --test e2e overload::torture -- --ignored --nocapture

# What a power cut may leave at each sync of 1,000 messages, and 10,000 parts of what was not synced, each opened and looked at: the
# figures of docs/syncs.md; twenty minutes. SEED=7 for the same parts again, MESSAGES=200 and SUBSETS=2000 for less. `make test` has 60 messages.
torture-syncs: deps
	SEED=$(SEED) MESSAGES=$(MESSAGES) SUBSETS=$(SUBSETS) $(CARGO) test --test syncs thousand -- --ignored --nocapture

# Every state of two mails, two hosts, two crashes, two lost answers and a frozen process (nine million), and the rules against
# their oracle (1.5 million verdicts); `make test` has a part of both.
torture-model:
	$(CARGO) test --release --test model --test oracle -- --nocapture --test-threads 1

# The reference backend against docs/backend-api.yaml alone.
contract: deps
	$(CARGO) build
	tests/contract/run

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-features --lib --test verify -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	packaging/check-licences
	packaging/check-manifests

# Known faults of the crates: needs a network. CI, which may have none, says that it was skipped.
advisories:
	packaging/check-licences advisories

# Rates and memory beside other filters, one table: RUNS=3, ONLY=protocol,courier,... WRITE=1 for docs/benchmarks.md.
# Then the parts alone, in time and in instructions.
bench: deps
	packaging/install-deps bench
	$(CARGO) bench --bench peers
	$(CARGO) bench --bench lanes
	$(CARGO) bench --bench scale
	$(CARGO) bench --bench severa
	$(CARGO) bench --bench parts
	GUNGRAUN_RUNNER=$(CURDIR)/target/tools/bin/gungraun-runner $(CARGO) bench --bench counts

# target/debian/*.deb, target/generate-rpm/*.rpm: the same sources give the same bytes.
deb rpm:
	packaging/build-package $@

# Install, use, upgrade, remove and purge the Debian package in a root of its own; lintian; the RPM's content.
package-test:
	packaging/test-packages

# The Debian package on a machine that runs: real systemd and a Postfix that has lived, in namespaces of their own; then its
# maintainer scripts in every order.
booted-test: deb
	packaging/test-booted $$(ls -t target/debian/activity-milter_*.deb | head -1)
	packaging/test-scripts $$(ls -t target/debian/activity-milter_*.deb | head -1)

# target/dist/activity-milter-VERSION.tar.gz, all crates with it: builds without a network.
dist:
	packaging/make-dist

# The files of the packages, below PREFIX; units and configuration where they belong.
install: build
	install -D -m 755 target/release/activity-milter $(DESTDIR)$(PREFIX)/bin/activity-milter
	for page in packaging/man/*; do \
	    install -D -m 644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}; done
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in packaging/systemd/activity-milter*; do \
	    sed 's:/usr/bin/activity-milter:$(PREFIX)/bin/activity-milter:' $$unit \
	        > $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
	install -D -m 644 packaging/sysusers.d/activity-milter.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/activity-milter.conf
	install -D -m 644 packaging/tmpfiles.d/activity-milter.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/activity-milter.conf
	for file in activity-milter.toml directory.toml; do \
	    test -e $(DESTDIR)/etc/activity-milter/$$file || \
	        install -D -m 640 packaging/$$file $(DESTDIR)/etc/activity-milter/$$file; done

# Debian packages that demo and tests need; nothing is asked, and the system's Postfix is not configured or started.
deps:
	packaging/install-deps
