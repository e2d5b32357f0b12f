# make run      the whole tunnel on this machine, with a page to look at (MODE=, DEST=, PORT=)
# make test     all tests
# make lint     ruff and mypy
# make bench    the benchmarks
# make soak     faults, churn, noise and slow lines: 10 minutes at most (SOAK="faults --seed 2")
# make install  the commands mtt-client, mtt-server, mtt-mu-server, anytls-client, anytls-server,
#               anyproxy-client and anyproxy-gateway in .venv/bin, and PyYAML
# make deb      the Debian package, in dist; needs only dpkg-deb and Python
# make dist     the wheel and the source distribution, in dist
# make release  check CHANGELOG.md, version and working tree, build all of these, tag the commit
# make test-packages
#               install, run, upgrade and purge the packages in fresh Debian systems; needs root,
#               debootstrap and the network, and takes some minutes
# make clean    remove everything that make created
# make help     print this
#
# make works in .venv, with the first Python below that is 3.11 or newer, or with
# make PYTHON=/opt/python3.13/bin/python3. For a second Python, name another directory:
# make test PYTHON=python3.13 VENV=.venv-3.13 TESTS="tests/wire tests/layers"

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
EXTRAS ?= test
TESTS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CHECKED := $(wildcard mtt plugin mtt_client.py mtt_server.py mtt_mu_server anytls anyproxy tools bench soak)

CHECK_PYTHON = $(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null || { \
	echo 'Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3' >&2; exit 1; }

# What is listed here is installed again when one of these changes.
PACKAGING := setup.cfg pyproject.toml

.PHONY: run test lint bench soak install deb dist release test-packages clean help
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@$(BIN)/python -m tools.demo

install: $(VENV)/.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy --strict $(CHECKED)

bench: $(VENV)/.dev
	$(BIN)/python -m bench

soak: $(VENV)/.installed
	$(BIN)/python -m soak $(SOAK)

deb:
	@$(CHECK_PYTHON)
	@$(PYTHON) -m tools.deb

dist: $(VENV)/.dist
	@$(BIN)/python -m tools.dist

release: $(VENV)/.dist
	@$(BIN)/python -m tools.release

test-packages: $(VENV)/.test $(VENV)/.dist
	MTT_PACKAGING=1 $(BIN)/python -m pytest $(or $(TESTS),tests/packaging)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: $(VENV)/.made $(PACKAGING)
	$(PIP) --editable .
	@touch $@

$(VENV)/.yaml: $(VENV)/.installed
	$(PIP) --editable '.[yaml]'
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.dist: $(VENV)/.installed
	$(PIP) --editable '.[dist]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.made:
	@$(CHECK_PYTHON)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo '$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv' >&2; \
	exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
