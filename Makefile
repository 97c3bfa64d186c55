# The commands of the project. Each installs the Debian packages that it lacks (as root) and says which.

.PHONY: help demo test test-upgrade bench bench-dataplane bench-cluster lint fix tools

help:
	@echo "make demo    three nodes in network namespaces, live (root; ONCE=1: end with a verdict)"
	@echo "make test    all tests (without root: those that need none)"
	@echo "make test-upgrade  rolls a cluster from an older version to this one and back (root)"
	@echo "make bench   forwarding, the cluster and names, compared with the kernel, etcd, dnsdist and unbound (root)"
	@echo "make bench-dataplane  all of the dataplane: per packet, policies, forwarding, under attack, DPDK (root)"
	@echo "make lint    formatting, lints, documentation, dependencies"
	@echo "make fix     format, and apply what the lints suggest"

demo: tools
	cargo build --profile demo --package neuwerk --package lab --bin neuwerk --bin demo
	@"$$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/demo/demo"

test: tools
	@cargo xtask test

# Left out of `make test`: it builds the older version, which lab/upgrade-from names, from its sources first.
test-upgrade: tools
	cargo build --package neuwerk
	cargo test --package lab --test upgrade -- --nocapture

# FULL=1: as many and as long samples as the targets speak of.
bench: tools
	@cargo xtask bench forwarding
	@cargo xtask bench cluster $(if $(FULL),--full)
	@cargo xtask bench names

bench-dataplane: tools
	@cargo bench -p io --bench engine
	@cargo bench -p engine --features stages --bench stages -- --quick
	@cargo bench -p policy --bench evaluate -- --compare
	@cargo xtask bench forwarding
	@cargo bench -p io --features dpdk --bench dpdk
	@cargo xtask bench attack

bench-cluster: tools
	@cargo xtask bench cluster $(if $(FULL),--full)

lint: tools
	@cargo xtask ci

fix:
	@cargo xtask fix

tools:
	@lab/install-tools
