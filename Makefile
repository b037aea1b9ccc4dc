# make demo   the main job on embedded defaults: no root, no cluster, no containerd
# make test   all tests that this machine can run; what it can't is skipped with its reason
# make e2e    real containerd and kubectl, as root: pods, kills, power cuts, outages; five minutes. The cluster is the
#             gateway's sandbox, or the one that is named: make e2e KUBECONFIG=…
# make vm     whole systems, as root: our file installed in a Debian under QEMU, joined, upgraded, its power cut; six
#             minutes. More: make vm VM=--long. Needs qemu-system-x86 debootstrap dosfstools kmod
# make mapper-framework MAPPER=…    a mapper made with KubeEdge's mapper-framework on a node of ours; says what it needs
PYTHON ?= python3
SEEDS ?= 500
SEED ?=
STATES ?=
GIVE_UP_S ?=
JOBS ?= $(shell n=$$(nproc); echo $$((n > 4 ? 4 : n))) # tests beside each other, file by file
KUBECONFIG = # only what is given on the command line: no test runs against a cluster by accident
MAPPER ?=
VM ?= # of `make vm`: --long, --inside, --init openrc, --init sysv, --init all
BENCH ?= store pods link fleet devices binary
OUTAGE_S ?= 480
SOAK ?= # of `make soak`: --hours 72 --per-s 100 --kill-minutes 60
export PYTHONUNBUFFERED = 1
export PYTHONDONTWRITEBYTECODE = # what starts an interpreter a hundred times compiles once

.PHONY: demo test lint fmt bench outage soak sim crash e2e mapper-framework vm proto binary binary-check release lock reproducible docs clean
.DELETE_ON_ERROR:

.venv/.run: pyproject.toml
	@echo "Making .venv (once; about a minute)…" >&2
	@test -x .venv/bin/python || $(PYTHON) -c 'import sys; sys.exit("tinyedge needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 …") if sys.version_info < (3, 11) else 0'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[gateway,demo]'
	@touch $@

.venv/.dev: pyproject.toml .venv/.run
	@echo "Installing what the tests need into .venv (once)…" >&2
	@.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/.run
	@.venv/bin/tinyedge demo

test: .venv/.dev
	.venv/bin/python -m pytest -q --ignore=tests/e2e -n $(JOBS) --dist loadfile

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: .venv/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.dev
	@for bench in $(BENCH); do .venv/bin/python -m tests.bench.$$bench || exit 1; done

outage: .venv/.dev
	@.venv/bin/python -m tests.bench.link --outage $(OUTAGE_S)

soak: .venv/.dev
	@.venv/bin/python -m tests.bench.soak $(SOAK)

sim: .venv/.dev
	@.venv/bin/python -m tests.sim --seeds $(SEEDS)

crash: .venv/.dev
	@.venv/bin/python -m tests.crash $(if $(SEED),--seed $(SEED)) $(if $(STATES),--states $(STATES)) $(if $(GIVE_UP_S),--seconds $(GIVE_UP_S))

e2e: .venv/.dev
	TINYEDGE_E2E_KUBECONFIG="$(KUBECONFIG)" .venv/bin/python -m pytest -q -rs tests/e2e -n $(JOBS) --dist loadgroup

mapper-framework: .venv/.dev
	@.venv/bin/python -m tests.e2e.mapper_framework "$(MAPPER)"

vm: .venv/.dev
	@.venv/bin/python -m tests.qemu $(VM)

proto: .venv/.dev
	.venv/bin/python build/protobuf.py

binary: .venv/.dev
	@.venv/bin/python build/binary.py --product edge $(if $(ARCH),--arch $(ARCH))
	@$(if $(ARCH),,.venv/bin/python build/binary.py --product gateway)

binary-check: .venv/.dev
	@.venv/bin/python -m tests.build.emulated $(ARCH)

release: .venv/.dev
	@.venv/bin/python build/release.py $(if $(KEY),--key "$(KEY)")

lock: .venv/.dev
	@.venv/bin/python build/tools.py --lock

reproducible: .venv/.dev
	@.venv/bin/python build/reproducible.py

docs: .venv/.dev
	.venv/bin/python -m tests.docs

clean:
	rm -rf .venv dist .work .pytest_cache .mypy_cache .ruff_cache
