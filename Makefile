# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
# ip, nft and iptables are there, which a root shell made by su may not know.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# The Go that is installed. go.mod names the newest release, which Go would download.
export GOTOOLCHAIN := local

NODES ?= 4
TOPOLOGY ?= full
CLIENT ?=
VERSION := $(shell packaging/version.sh)
COMMIT := $(shell git log -1 --format='-X main.commit=%h -X main.date=%cs' 2>/dev/null)
# What deb and release build for, in Debian's words. Unless set, deb builds for this machine's
# architecture, and release for three.
ARCHS ?=
# A regular expression for names of tests.
RUN ?=
# What test-kernel runs: the end-to-end tests in which the kernel's own WireGuard, ipip or
# netem has a part, and all tests of the other packages. Every other end-to-end test runs in
# namespaces, and there too if RUN names it.
KERNEL_TESTS := ./test/lab ./internal/netcfg/host ./internal/path/relaynft
KERNEL_E2E := ^Test(AllowedIPMoves|BadUnderlay|ClientOfNodeThatMoves|DeletedByHandIsBack|DeletedDeviceFindsPeersBehindNAT|DownRemovesExactlyOurs|Encapsulation|ForeignWireGuard|IPv6OnlyUnderlay|IdleReconcileWritesNothing|KernelWireGuard|MTU|NarrowPath|Paths|PathsOfKinds|SourceAddresses|StopChangesNothing|TakenPorts|TrafficOverChangesOfPath|TrafficOverRestarts|UnderlayMTU)$$
# What takes minutes there by its nature.
KERNEL_LONG := ^Test(ClocksSetBack|CutOffForTenMinutes)$$
# Time counted on a processor four times as fast as the one of bench: gateways are replaced as soon as on
# real ones, and eight nodes with traffic are no load that loses packets.
COUNTED := -icount -shift 0
# How long fuzz runs each target.
TIME ?= 30s
# How long chaos begins new faults, and which ones.
DURATION ?= 10m
soak test-etcd-long: DURATION = 1h
SEED ?= 1
# Packages without goroutines, in which the race detector finds nothing and takes long.
PURE := ./internal/mesh ./internal/netcfg ./internal/netcfg/filter ./internal/node ./internal/path
# Unit tests that are shorter with -short.
LONG_TESTS := ./internal/gossip ./internal/mesh ./internal/netcfg ./internal/netcfg/host ./internal/node ./internal/state
# Static, so that it runs on any host and in the virtual machine of test-kernel.
BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION) $(COMMIT)'
# End-to-end tests of a meshd that stops at the first data race.
E2E := GORACE=halt_on_error=1 go test -count=1 -p 1 -parallel 6 -timeout 45m -v
export MESHD := $(CURDIR)/bin/meshd

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/meshd
	$(BUILD) -o bin/ ./cmd/meshd

.PHONY: deb
deb: ## build the Debian package in dist for this machine's architecture; ARCHS='amd64 arm64 armhf' for others
	@VERSION='$(VERSION)' ARCHS='$(ARCHS)' packaging/deb/build.sh

.PHONY: repo
repo: setup-deb deb ## make the apt repository dist/apt, signed with KEY=FINGERPRINT; URL=https://... is where it will be
	@URL='$(URL)' packaging/deb/repo.sh '$(KEY)'

.PHONY: release
release: setup-deb ## make all of a release in dist, signed with KEY=FINGERPRINT: packages, tarballs, SBOM, checksums, the apt repository; URL=https://... is where that will be
	@URL='$(URL)' ARCHS='$(ARCHS)' packaging/release.sh '$(KEY)'

.PHONY: demo
demo: setup build ## four cloud hosts on this machine, pinged all over; NODES=8 for more, or TOPOLOGY=location, cross, or nat for hosts behind routers; CLIENT=1 for a laptop
	@go tool -n cnitool >/dev/null
	@go build -o bin/ ./test/demo
	@if [ -n "$(CLIENT)" ]; then test/setup.sh dnsmasq && CGO_ENABLED=0 go build -o bin/wireguard-go golang.zx2c4.com/wireguard; fi
	@exec bin/demo -meshd $(MESHD) -topology $(TOPOLOGY) -nodes $(NODES) $(if $(CLIENT),-client)

.PHONY: test
test: test-unit test-vuln test-hostile test-e2e test-kernel test-etcd test-package test-vm ## everything but what takes minutes by its nature, see soak

.PHONY: test-unit
test-unit: setup-unit ## vet, lint, format, unit tests with the race detector, fuzz seeds
	go vet -tags hostile ./...
	go tool staticcheck -checks all -tags hostile ./...
	go vet -tags kernel ./test/...
	go tool staticcheck -checks all -tags kernel ./test/...
	@unformatted=$$(go tool gofumpt -l .); if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:" $$unformatted; exit 1; fi
	@mkdir -p bin
	go test -race -short -vet off -coverprofile bin/cover.out -parallel 4 $$(go list ./cmd/... ./internal/... | grep -vxF "$$(go list $(PURE))")
	go test -short -vet off -covermode atomic -coverprofile bin/pure.out $(PURE)
	go test -short -vet off -run '^TestThirty' ./internal/path/agent
	@tail -n +2 bin/pure.out >>bin/cover.out
	@go tool cover -func bin/cover.out | awk 'END { print "coverage of all by the unit tests:", $$NF }'

.PHONY: test-vuln
test-vuln: setup ## known vulnerabilities that the code can reach, by the database that go.mod names
	go test ./test/vuln
	@go run ./test/vuln

.PHONY: test-long
test-long: setup ## the unit tests that test-unit cuts short: more random cases, a thousand joins, a flood of packets
	go test -timeout 30m $(LONG_TESTS)

.PHONY: fuzz
fuzz: ## every fuzz target for TIME=30s; what it finds stays in testdata/fuzz
	@set -e; for package in $$(go list ./internal/...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep ^Fuzz); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(TIME) $$package; \
		done; \
	done

.PHONY: test-hostile
test-hostile: setup-race build ## what pods, strangers and insiders may not do, on daemons under attack too, needs root; RUN=name for one attack
	go test -short -run '^TestHostile' ./cmd/... ./internal/...
	go build -race -o bin/meshd-race ./cmd/meshd
	MESHD=$(CURDIR)/bin/meshd-race $(E2E) -run '^TestHostile' ./test/e2e
	go test -tags hostile -count=1 -timeout 30m -v -run '^TestHostile$(if $(RUN),/$(RUN))' ./test/hostile

.PHONY: test-e2e
test-e2e: setup-race build ## end-to-end tests on namespaces, with the race detector in meshd, and three minutes of faults at random, needs root; RUN=TestName for one
	go build -race -o bin/meshd-race ./cmd/meshd
	MESHD=$(CURDIR)/bin/meshd-race $(E2E) -run '$(RUN)' $(if $(RUN),,-skip '^Test(Hostile|Soak)') ./test/bench ./test/lab ./test/paths ./test/swarm ./test/demo ./test/compat ./test/e2e
	go test -count=1 -v -run '$(RUN)' ./test/chaos

.PHONY: test-swarm
test-swarm: setup ## gossip among a hundred, two hundred and five hundred nodes; wants a machine of its own
	go test -count=1 -timeout 60m -v -run '$(or $(RUN),^TestSoak)' ./test/swarm

.PHONY: test-kernel
test-kernel: setup-kernel build ## what the kernel has a part in, on one with WireGuard and netem, in QEMU; RUN=TestName for one of all tests
	go test -run '$(RUN)' ./test/cache ./test/kernel
	@CGO_ENABLED=0 go build -o bin/ ./test/kernel
ifeq ($(RUN),)
	@bin/kernel -run '$(KERNEL_E2E)' test ./test/e2e
	@exec bin/kernel test $(KERNEL_TESTS)
else
	@exec bin/kernel -run '$(RUN)' test ./test/e2e $(KERNEL_TESTS)
endif

.PHONY: test-etcd
test-etcd: setup-kernel build-etcd ## three members of etcd at sites 80 ms apart, there too: a gateway fails, a path is cut, a site is lost; vet and lint of that module
	go vet -C test/etcd .
	@staticcheck=$$(go tool -n staticcheck) && cd test/etcd && $$staticcheck -checks all .
	go test -C test/etcd .
	@exec bin/kernel $(COUNTED) exec bin/etcd -meshd $(MESHD)

.PHONY: test-package
test-package: setup-deb setup-monitoring setup-vagrantfile setup-examples ## what is in the package and in a release, the alerts, the Vagrantfile, and the examples for cloud-init and Ansible; RUN=TestName for one
	go test -count=1 -timeout 30m -v -run '$(RUN)' ./packaging/... ./vagrant

.PHONY: test-vm
test-vm: setup-deb setup-vm ## the package in three virtual machines with systemd
	go test -count=1 -timeout 120m -v ./test/vm

.PHONY: test-vagrant
test-vagrant: setup-vm setup-vagrant ## vagrant up with a box made here, on emulated machines, until nodes and pods reach each other
	go test -count=1 -timeout 60m -v ./test/vagrant

.PHONY: chaos
chaos: setup-kernel build ## faults at random for DURATION=10m, SEED=1, on a kernel with WireGuard and netem
	@CGO_ENABLED=0 go build -o bin/ ./test/chaos ./test/kernel
	@CNITOOL=$$(CGO_ENABLED=0 go tool -n cnitool) bin/kernel -timeout 12h exec \
		bin/chaos -meshd $(MESHD) -duration $(DURATION) -seed $(SEED)

.PHONY: test-etcd-long
test-etcd-long: setup-kernel build-etcd ## the same at random for DURATION=1h, half of it with each set of timings, SEED=1; prints elections and times without writes
	@exec bin/kernel $(COUNTED) -timeout 12h exec bin/etcd -meshd $(MESHD) -duration $(DURATION) -seed $(SEED)

# A module of its own, so that meshd's names nothing that only etcd needs.
.PHONY: build-etcd
build-etcd: build
	@CGO_ENABLED=0 go build -C test/etcd -o $(CURDIR)/bin/ .
	@CGO_ENABLED=0 go build -o bin/ ./test/kernel

.PHONY: kernel-shell
kernel-shell: setup-kernel build ## bash in the virtual machine of test-kernel
	@CGO_ENABLED=0 go build -o bin/ ./test/kernel
	@exec bin/kernel -run '$(RUN)' shell ./test/e2e $(KERNEL_TESTS)

.PHONY: test-kernel-long
test-kernel-long: ## there too: ten minutes without a network, clocks that are set back
	@$(MAKE) --no-print-directory test-kernel RUN='$(KERNEL_LONG)'

.PHONY: test-paths-long
test-paths-long: setup setup-kernel build ## whole nodes behind two routers of each kind, thirty on one relay, routers that reboot; ten minutes of new sessions on paths of all kinds, there too; needs root
	go test -count=1 -timeout 90m -v -run '^TestSoak' ./test/e2e
	@CGO_ENABLED=0 go build -o bin/ ./test/kernel
	@exec bin/kernel $(COUNTED) -timeout 2h -run '^TestSoakRekeys$$' test ./test/e2e

.PHONY: soak
soak: test-long test-swarm test-vagrant test-kernel-long test-paths-long test-etcd-long chaos fuzz ## what takes minutes by its nature: the unit tests at full length, hundreds of nodes, vagrant up, ten minutes without a network, paths of all kinds, an hour of etcd across sites, an hour of faults, every fuzz target; some four hours

.PHONY: bench
bench: setup setup-kernel build ## measure; prints lines "bench NAME VALUE UNIT"; RUN=datapath for one measurement
	@CGO_ENABLED=0 go build -tags hostile -o bin/ ./test/bench ./test/kernel
	@bin/bench -run '$(RUN)' -meshd $(MESHD); code=$$?; \
	CNITOOL=$$(CGO_ENABLED=0 go tool -n cnitool) bin/kernel exec bin/bench -kernel -run '$(RUN)' -meshd $(MESHD) || code=$$?; \
	bin/kernel -icount -timeout 2h exec bin/bench -icount -run '$(RUN)' -meshd $(MESHD) && exit $$code

.PHONY: fmt
fmt: ## format the source
	go tool gofumpt -w .

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist

.PHONY: setup
setup:
	@test/setup.sh

.PHONY: setup-unit
setup-unit:
	@test/setup.sh gcc dot zbarimg

.PHONY: setup-race
setup-race:
	@test/setup.sh gcc dnsmasq miniupnpd

.PHONY: setup-kernel
setup-kernel:
	@test/setup.sh qemu-system-x86_64 depmod sysctl awk

.PHONY: setup-deb
setup-deb:
	@test/setup.sh apt-ftparchive lintian gpg man systemd-analyze qemu-aarch64

.PHONY: setup-monitoring
setup-monitoring:
	@test/setup.sh promtool

.PHONY: setup-vm
setup-vm:
	@test/setup.sh qemu-system-x86_64 mmdebstrap mkfs.ext4 gpg apt-ftparchive

.PHONY: setup-vagrantfile
setup-vagrantfile:
	@test/setup.sh vagrant

.PHONY: setup-examples
setup-examples:
	@test/setup.sh ansible-lint cloud-init-schema.json

.PHONY: setup-vagrant
setup-vagrant:
	@test/setup.sh vagrant libvirtd virsh qemu-img ssh dnsmasq
