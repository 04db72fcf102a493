# The verbs of the README. `make` alone says what there is.
# PYTHON: an interpreter of 3.11 or newer to make .venv with. ARGS: passed on to pytest, the demo, the model.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV     ?= uv
ARGS   ?=
WORKERS ?= 2
SEEDS  ?= 1-200
SECONDS ?= 600
SEED   ?= 1
FAULTS ?= all
MINUTES ?= 10
BIN    := .venv/bin
STAMP  := .venv/.made-from

.PHONY: observability
.PHONY: help secrets setup demo test check bench simulate model audit fuzz schemas docs dist lock clean chaos soak compare drill k8s-manifests k8s-test scale-test disasters bench-backup

help:
	@echo "make setup    .venv with everything in it, as locked in requirements/dev.txt"
	@echo "make demo     the whole system on this machine, with a kill and an outage, and its books compared per id"
	@echo "make test     all tests (real Apache Kafka; ARGS='tests/unit -x' for some of them)"
	@echo "make check    lint, format, types, import rules, schemas, compose file"
	@echo "make bench    measure; writes bench/results.json and docs/benchmarks.md (on a quiet machine)"
	@echo "make simulate run the services in one process in virtual time, faults by seed (SEEDS=FIRST-LAST)"
	@echo "make chaos    faults injected into three brokers and six services under load (SEED=N FAULTS='a b'; as root)"
	@echo "make soak     the same faults mixed for MINUTES=N; memory, files, threads and topics must be flat"
	@echo "make drill    rehearse failures on a throwaway stack (ARGS='sender-crash --short'); docs/drills.md"
	@echo "make disasters  a backup under load, restores that are killed, offsets reset: with a witness (some minutes)"
	@echo "make bench-backup  backup and restore of a million suppressions and requests (ARGS='--records 100000')"
	@echo "make compare  the same kills for Postlane, a naive consumer, Celery and Postfix, one kind of witness"
	@echo "make model    explore the models of the protocols (ARGS=--long for the deep ones)"
	@echo "make docs     the documentation site, into site/ (mkdocs, in an environment of its own)"
	@echo "make dist     sdist, wheel and SBOM into dist/: built twice and compared, contents checked, installed"
	@echo "make audit    ask the advisory database about every locked release (needs the network; says so without)"
	@echo "make fuzz     hostile input, guided by coverage (SECONDS=600, ARGS='-k NAME')"
	@echo "make schemas  write schemas/ anew from the models; refuses what older records would not survive"
	@echo "make k8s-manifests  write Strimzi's topics and users anew from the declarations in the code"
	@echo "make k8s-test the manifests on a real cluster: give KUBECONFIG (a test cluster: it makes and deletes namespaces)"
	@echo "make scale-test  sender processes under load, 1 to 8 to 2, and what membership costs (some minutes)"
	@echo "make secrets  a random database password and an API key for docker compose, in ./secrets"
	@echo "make observability  write Prometheus's rules and Grafana's dashboards anew from alerts.py, slos.yaml, dashboards.py"
	@echo "make lock     resolve requirements/*.txt anew (needs uv)"
	@echo "make clean    remove .venv and caches"

setup: $(STAMP)

# Made anew when what it is made from has changed, and only then.
$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "setup: no python3.11 was found; set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: $(PYTHON) is older than Python 3.11; set PYTHON" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-input --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-input --no-deps --no-build-isolation --editable .
	@command -v mvn >/dev/null || test -d "$${POSTLANE_CACHE_DIR:-$$HOME/.cache/postlane}" || \
		echo "setup: Maven (mvn) is missing; it fetches Apache Kafka's jars on first use" >&2
	@touch $@

# For docker compose on a developer's machine: readable files, since the container's user is another one.
secrets: secrets/database-url secrets/gateway-keys.yaml

secrets/database-url:
	@mkdir -p secrets
	@$(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(24), end="")' > secrets/database-password
	@printf 'postgresql+psycopg://postlane:%s@postgres:5432/postlane' "$$(cat secrets/database-password)" > $@
	@echo "secrets: wrote secrets/database-password and secrets/database-url (not under version control)"

# As `postlane gateway new-key` would, which is not installed yet where only containers are used.
secrets/gateway-keys.yaml:
	@mkdir -p secrets
	@$(PYTHON) -c 'import secrets; print("plk_" + secrets.token_urlsafe(32), end="")' > secrets/gateway-key
	@$(PYTHON) -c 'import hashlib; key = open("secrets/gateway-key", "rb").read(); print("keys:\n  - {name: local, sha256: %s, may: [publish, bounces]}" % hashlib.sha256(key).hexdigest())' > $@
	@echo "secrets: wrote secrets/gateway-key (for callers of the HTTP API) and $@"

demo: setup
	$(BIN)/python -m demo $(ARGS)

test: setup
	$(BIN)/pytest -ra -n $(WORKERS) --dist loadfile $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy libs services demo
	$(BIN)/lint-imports
	$(BIN)/pytest -ra tests/unit/test_schemas.py tests/unit/test_compose_file.py tests/unit/test_dependencies.py

bench: setup
	$(BIN)/python -m bench $(ARGS)

bench-backup: setup
	$(BIN)/python -m bench.backup $(ARGS)

disasters: setup
	POSTLANE_TEST_DISASTERS=1 $(BIN)/pytest -ra tests/acceptance/test_lost_cluster.py \
		tests/acceptance/test_offsets_reset.py tests/acceptance/test_backup_under_load.py $(ARGS)

simulate: setup
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos --seed $(SEED) --faults $(FAULTS) $(ARGS)

soak: setup
	$(BIN)/python -m tests.chaos --seed $(SEED) --soak-minutes $(MINUTES) $(ARGS)

drill: setup
	$(BIN)/postlane drill $(ARGS)

compare: setup .venv-compare/.made-from
	$(BIN)/python -m tests.chaos.compare $(ARGS)

.venv-compare/.made-from: requirements/compare.txt
	@test -x .venv-compare/bin/python || $(PYTHON) -m venv .venv-compare
	.venv-compare/bin/python -m pip install --quiet --no-input --require-hashes -r requirements/compare.txt
	@touch $@

model: setup
	$(BIN)/python -m tests.model $(ARGS)

audit: setup
	$(BIN)/python -m tests.audit

# All targets in turn, coverage-guided; what was found stays in .fuzz/.
fuzz: setup
	$(BIN)/python -m tests.hostile.fuzz --seconds $(SECONDS) $(ARGS)

schemas: setup
	$(BIN)/python -m postlane.ops.schemas

observability: setup
	$(BIN)/python -m observability

# mkdocs has dependencies of its own, which nothing else needs.
DOCS_STAMP := .venv-docs/.made-from
$(DOCS_STAMP): requirements/docs.txt
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --no-input --require-hashes -r requirements/docs.txt
	@touch $@

docs: $(DOCS_STAMP)
	.venv-docs/bin/mkdocs build --strict --quiet

dist: setup
	$(BIN)/python -m release

LOCK := $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --universal \
	--python-version 3.11 --no-header --extra all

k8s-manifests: setup
	$(BIN)/python -m postlane.ops.kubernetes

k8s-test: setup
	$(BIN)/python -m tests.k8s $(ARGS)

scale-test: setup
	$(BIN)/python -m tests.scaling $(ARGS)

lock:
	$(LOCK) pyproject.toml --output-file requirements/runtime.txt
	$(LOCK) pyproject.toml requirements/dev.in --output-file requirements/dev.txt
	$(filter-out --extra all,$(LOCK)) requirements/docs.in --output-file requirements/docs.txt
	$(filter-out --extra all,$(LOCK)) requirements/build.in --output-file requirements/build.txt
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --universal \
		--python-version 3.11 --no-header requirements/compare.in --output-file requirements/compare.txt
	@! grep -nE 'https?://|^--' requirements/*.txt || { echo "lock: a location got into a lock" >&2; exit 1; }

clean:
	rm -rf .venv .venv-compare .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
