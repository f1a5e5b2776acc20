# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
# ip, nft and iptables are there, which a root shell made by su may not know.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

NODES ?= 4
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
BUILD := go build -trimpath -ldflags '-X main.version=$(VERSION)'
export MESHD := $(CURDIR)/bin/meshd

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/meshd
	$(BUILD) -o bin/ ./cmd/meshd

.PHONY: demo
demo: setup build ## four cloud hosts on this machine, pinged all over; NODES=8 for more
	@go tool -n cnitool >/dev/null
	@go build -o bin/ ./test/demo
	@exec bin/demo -meshd $(MESHD) -nodes $(NODES)

.PHONY: test
test: test-unit test-e2e ## everything

.PHONY: test-unit
test-unit: setup-race ## vet, lint, format, unit tests with the race detector, fuzz seeds
	go vet ./...
	go tool staticcheck -checks all ./...
	@unformatted=$$(go tool gofumpt -l .); if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:" $$unformatted; exit 1; fi
	go test -race ./cmd/... ./internal/...

.PHONY: test-e2e
test-e2e: setup build ## end-to-end tests on namespaces, needs root
	go test -count=1 -p 1 -timeout 30m -v ./test/...

.PHONY: bench
bench: setup build ## measure; prints lines "bench NAME VALUE UNIT"
	@go build -o bin/ ./test/bench
	@exec bin/bench -meshd $(MESHD)

.PHONY: fmt
fmt: ## format the source
	go tool gofumpt -w .

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: setup
setup:
	@test/setup.sh

.PHONY: setup-race
setup-race:
	@test/setup.sh gcc
