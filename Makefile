# staybus: one command for each thing one does. `make` alone lists them.
# Needs GNU make and a Python 3.11 or newer; everything else is fetched into .staybus/ and .venv/.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ARGS ?=
UV := .staybus/bootstrap/bin/uv
READY := .staybus/ready
PEERS := .staybus/peers
STACK := .venv/bin/python -m ops.stack

export UV_PROJECT_ENVIRONMENT := .venv
# The certificates this machine trusts, not a list of uv's own; SSL_CERT_FILE is honoured too.
export UV_NATIVE_TLS ?= 1
export UV_SYSTEM_CERTS ?= 1

# Tests, demo and benchmarks start hundreds of processes. Python keeps what it compiled, or each of them would first compile for
# two seconds.
unexport PYTHONDONTWRITEBYTECODE

heading = @printf '\n== %s\n' '$(1)'

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s%s\n", $$1, $$2 }' Makefile
	@printf '\n  Words for the command go into ARGS: make test ARGS="-k outbox"\n'

.PHONY: setup
setup: $(READY) ## install all that the other targets need (they call it themselves)

.PHONY: demo
demo: $(READY) ## the whole gateway against simulated vendors, with a story to watch
	$(call heading,demo)
	@.venv/bin/staybus demo $(ARGS)

.PHONY: up
up: $(READY) ## start everything and keep it running
	$(call heading,up)
	@.venv/bin/staybus up $(ARGS)

.PHONY: down
down: $(READY) ## stop what `make up` left running
	$(call heading,down)
	@.venv/bin/staybus down $(ARGS)

.PHONY: test
test: $(READY) ## all tests, against a real Postgres and a real RabbitMQ
	$(call heading,test)
	@.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: check
check: $(READY) ## formatting, lint, types, import rules
	$(call heading,check: format)
	@.venv/bin/ruff format --check .
	$(call heading,check: lint)
	@.venv/bin/ruff check .
	$(call heading,check: types)
	@.venv/bin/mypy
	$(call heading,check: imports)
	@.venv/bin/lint-imports

.PHONY: fix
fix: $(READY) ## repair formatting and what lint can repair
	$(call heading,fix)
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

.PHONY: bench
bench: $(READY) ## measure throughput and latency
	$(call heading,bench)
	@.venv/bin/python -m bench $(ARGS)

.PHONY: bench-peers
bench-peers: $(READY) $(PEERS)/ready ## the same work by FastStream, Celery and plain aio-pika, beside staybus
	$(call heading,bench-peers)
	@.venv/bin/python -m bench.peers $(ARGS)

.PHONY: bench-growth
bench-growth: $(READY) ## what an event costs with 10 thousand, 1 and 10 million behind it (half an hour, 36 GiB)
	$(call heading,bench-growth)
	@.venv/bin/python -m bench.growth $(ARGS)

.PHONY: bench-backlog
bench-backlog: $(READY) ## what the processes hold in memory while a million events wait, and while the broker is away
	$(call heading,bench-backlog)
	@.venv/bin/python -m bench.backlog $(ARGS)

.PHONY: bench-isolation
bench-isolation: $(READY) ## what nine parties feel of a dead vendor, and of a tenant with fifty times their load
	$(call heading,bench-isolation)
	@.venv/bin/python -m bench.isolation $(ARGS)

.PHONY: faults
faults: $(READY) ## kill processes at every step, cut servers, and look for what is lost or doubled
	$(call heading,faults)
	@.venv/bin/python -m tests.faults $(ARGS)

.PHONY: converge
converge: $(READY) ## random schedules that must all end at one truth; with ARGS=--real on the real parts
	$(call heading,converge)
	@.venv/bin/python -m tests.convergence $(ARGS)

.PHONY: rabbitmq4
rabbitmq4: $(READY) ## a RabbitMQ 4 beside the usual one, for STAYBUS_RABBITMQ_ROOT
	$(call heading,rabbitmq4)
	@$(STACK) rabbitmq4 $(ARGS)

.PHONY: clean
clean: ## stop this checkout's servers, remove their data, the environment and the caches
	$(call heading,clean)
	@if [ -x .venv/bin/python ] && [ -d .staybus ]; then \
	  for folder in .staybus/*/; do \
	    if [ -e "$$folder/lock" ]; then $(STACK) down --delete --folder "$$folder" || exit 1; fi; \
	  done; \
	fi
	@rm -rf .staybus .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build

$(UV): ops/bootstrap.sh
	$(call heading,bootstrap: uv in .staybus/bootstrap)
	@sh ops/bootstrap.sh .staybus/bootstrap
	@touch $@

$(READY): $(UV) pyproject.toml uv.lock
	$(call heading,install: the locked dependencies into .venv)
	@$(UV) sync --locked --group dev --python "$$(cat .staybus/bootstrap/python)"
	@touch $@

# In an environment of their own: what the peers need never reaches .venv, nor what staybus needs them.
$(PEERS)/ready: $(UV) pyproject.toml uv.lock
	$(call heading,install: the peers into $(PEERS)/venv)
	@UV_PROJECT_ENVIRONMENT=$(PEERS)/venv $(UV) sync --locked --only-group peers \
	  --python "$$(cat .staybus/bootstrap/python)"
	@touch $@
