# Run plain `make` for the list of targets.
SHELL := /bin/bash

# Guest tests boot virtual machines. They run without the race detector, which would see nothing of
# what runs in them. Everything else runs with it.
NOT_GUESTS = $$(go list ./... | grep -v '/holdfast/test/')
GUESTS = $$(go list ./test/...)

.PHONY: help setup build image test unit vet crash guest torture nfs lint demo bench clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 9

setup: ## install the Debian packages that are missing
	@./scripts/setup

build: ## build bin/holdfast
	@command -v gcc >/dev/null || ./scripts/setup
	go build -trimpath -o bin/holdfast ./cmd/holdfast

image: setup ## build the guest of the lab, unless it is cached
	go run ./test/vm/cmd/labvm --image

# What is built without the race detector comes in one row, so that nothing is built twice at once.
test: setup ## vet, all tests with the race detector, and beside them the tests that boot guests
	@./scripts/legs unit "vet crash guest"

# A guest that is slow misses its deadlines: what runs beside guests gives way to them.
unit: ## all tests that boot no guest, with the race detector
	nice -n 3 go test -vet=off -race -timeout 20m $(NOT_GUESTS)

vet: ## look for mistakes that compile
	go vet ./...

crash: ## the tests of the vault without the race detector: more of them, and all of what crashes and counts
	go test -vet=off -count=1 -timeout 20m ./internal/vault

guest: image ## the tests that boot guests, two packages at a time; torture with few rounds
	go test -vet=off -count=1 -short -p 2 -timeout 40m $(GUESTS)

torture: image ## kill, stop and starve backups of real guests; HOLDFAST_ROUNDS=100 for the long run
	go test -count=1 -v -timeout 150m ./test/torture

nfs: ## directory stores and vaults on a file system that behaves as NFS may
	HOLDFAST_NFS=1 go test -vet=off -count=1 -v -timeout 10m -run 'Network|Client|Stale|Options|Hosts' \
		./internal/blob/dir ./internal/vault/log ./internal/vault

lint: ## gofmt, the width of lines, vet and staticcheck
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt -l:"; echo "$$unformatted"; exit 1; fi
	go run ./scripts/wrap
	go vet ./...
	go tool staticcheck ./...

demo: setup build ## back a running guest up, lose it, get it back
	@./test/demo/run

bench: setup build ## compare speed and size with other programs
	@./bench/run

clean: ## remove what was built here; the guest image stays in the cache
	rm -rf bin
