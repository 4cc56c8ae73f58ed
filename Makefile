# make book: set up, execute every notebook on the full store, render the book.
# make test: set up, run every check. make check: lint, types and quick tests, the loop one works in. The rest is for authors; see CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
LAB := $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb))
COLAB := 01 02 04
# make bench CORNAC=PYTHON: a Python that has cornac, for tests/benchmarks/ta_feng.py.
CORNAC ?=
# make html LANGUAGE=zh_CN renders the book from the catalogues of that language; the variable LANGUAGE of a desktop does not count.
EDITION := $(if $(filter command,$(origin LANGUAGE)),$(filter-out en,$(LANGUAGE)))
# make messages LANGUAGE=zh_CN PAGES="...": pages whose translation begins.
PAGES ?=
export RECUTILS_CACHE ?= $(CURDIR)/.cache

.PHONY: book test check shake lab-check colab-check address lab serve report notebooks screenshot long format html messages leaderboard bench clean

book: .venv/book
	@RECUTILS_RESULTS=$(CURDIR)/_build/results $(BIN)/python tools/runner.py run _build/notebooks || [ $$? -eq 1 ]
	@$(BIN)/python tools/book.py html _build/notebooks

test: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python tools/book.py html
	$(BIN)/python tools/check.py
	$(BIN)/pytest

check: .venv/test
	@$(BIN)/ruff check -q . && $(BIN)/ruff format --check -q . && $(BIN)/mypy --no-error-summary
	@$(BIN)/pytest -q -m "not slow and not store and not browser" --durations=5

shake: .venv/test
	$(BIN)/python tools/check.py plain seed thread

lab-check: .venv/test
	RECUTILS_STRICT=1 RECUTILS_LAB="$(LAB)" $(BIN)/pytest -q tests/test_lab.py

colab-check: .venv/test
	$(BIN)/python tools/colab.py $(COLAB)

address: .venv/book
	@$(BIN)/python tools/address.py $(URL)

lab: .venv/book
	$(BIN)/jupyter lab notebooks

serve: .venv/book
	$(BIN)/python -m recutils.service

report: .venv/book
	$(BIN)/recutils report complete_journey --out _build/report.html

notebooks: .venv/test
	$(BIN)/python tools/runner.py format
	RECUTILS_RESULTS=$(CURDIR)/data/results $(BIN)/python tools/runner.py commit
	$(BIN)/python tools/book.py readme

screenshot: .venv/test
	RECUTILS_STRICT=1 RECUTILS_SCREENSHOT=1 $(BIN)/pytest -q tests/test_serve.py -k keyboard

long: .venv/test
	@for chapter in 02 05c 05d 05f 05g 06 08 09_ 11; do \
	  RECUTILS_PROFILE=long RECUTILS_RESULTS=$(CURDIR)/data/results $(BIN)/python tools/runner.py run _build/long --only $$chapter || exit 1; \
	done

format: .venv/test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . --exclude "*.ipynb"
	$(BIN)/python tools/runner.py format

html: .venv/book
	$(BIN)/python tools/$(if $(EDITION),translate.py html $(EDITION),book.py html)

messages: .venv/book
	$(BIN)/python tools/translate.py extract $(or $(EDITION),$(error make messages LANGUAGE=zh_CN)) $(PAGES)

leaderboard: .venv/book
	@$(BIN)/python tools/book.py leaderboard

bench: .venv/bench
	$(BIN)/python tests/benchmarks/mining.py
	$(BIN)/python tests/benchmarks/search.py
	$(BIN)/python tests/benchmarks/neighbour.py
	$(BIN)/python tests/benchmarks/million.py
	$(BIN)/python tests/benchmarks/lines.py
	$(BIN)/python tests/benchmarks/ta_feng.py $(CORNAC)
	$(BIN)/python tests/benchmarks/scale.py
	$(BIN)/python tests/benchmarks/catalogue.py
	$(BIN)/python tests/benchmarks/balancer.py

clean:
	rm -rf _build .cache .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info

.venv/book .venv/test .venv/bench: .venv/%: pyproject.toml constraints.txt bare.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -d .venv || $(PYTHON) -m venv .venv || { echo "The venv module is missing (Debian: apt-get install python3-venv)."; rm -rf .venv; exit 1; }
	@start=$$(date +%s); $(INSTALL) -e ".[$*]" && $(INSTALL) --no-deps -r bare.txt && touch $@ && echo "set up in $$(($$(date +%s) - start)) s"
