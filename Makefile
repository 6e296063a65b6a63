# make demo   set up, run the phantom study, print where the study page and the report are
# make test   set up, run all tests
# make lint   ruff, snakefmt, snakemake --lint

CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint setup test-packages clean

demo: $(BIN)/.study
	snakemake --cores $(CORES)
	@test -f results/report.html || snakemake --report results/report.html --quiet all
	@echo "The study page: $(CURDIR)/results/report/study.html"
	@echo "The report, with it: $(CURDIR)/results/report.html"

test: $(BIN)/.test test-packages
	pytest

lint: $(BIN)/.test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

# torch first and pinned: a range would take the newest build with several GB of CUDA packages.
$(BIN)/.study: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e .
	touch $@

$(BIN)/.test: $(BIN)/.study
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

# What the Slurm and browser tests need. Where it cannot be installed they are skipped and say why.
test-packages:
	@scripts=$$(command -v slurmctld munged chromium | wc -l); \
	if [ $$scripts -lt 3 ] && command -v apt-get >/dev/null && [ $$(id -u) = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge chromium >/dev/null; \
	fi || echo "Slurm or Chromium could not be installed; their tests will be skipped"

clean:
	find results -mindepth 1 -not -name README.md -not -path results/.snakemake -not -name .gitignore -delete
