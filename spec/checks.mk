# Checks that `make test` does not make: analysers, sanitizers, fuzzing. Included by the Makefile.
SANITIZE     := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -shared-libasan
ASAN_LIB      = $(shell clang -print-file-name=libclang_rt.asan-$(shell uname -m).so)
ASAN_ENV      = ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99:detect_stack_use_after_return=1 \
                LSAN_OPTIONS=suppressions=$(CURDIR)/spec/support/lsan.supp:print_suppressions=0 UBSAN_OPTIONS=print_stacktrace=1
FUZZ_SECONDS ?= 30
FORMATTED     = $(wildcard src/*.c src/*.h spec/support/*.c examples/*/*.c)
C_FLAGS       = -std=gnu11 -D_GNU_SOURCE '-DDEPLOYRT_VERSION="$(VERSION)"' -I$(BUILD)/gen \
                $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)

.PHONY: lint lint-c lint-lua lint-sh asan asan-build fuzz format check-deps

# Comes first, as deps does for the tests.
check-deps:
	@sh src/deps.sh checks

lint: check-deps ## static analysis of C, Lua and shell; silent when all is well
	@$(MAKE) --no-print-directory lint-c lint-lua lint-sh

lint-c: $(GEN)
	@cppcheck --enable=warning,performance,portability --error-exitcode=1 --inline-suppr --quiet --std=c11 \
	  -I$(BUILD)/gen --suppress=missingIncludeSystem src examples spec/support
	@clang-tidy --quiet --warnings-as-errors='*' $(wildcard src/*.c) -- $(C_FLAGS) 2>$(BUILD)/clang-tidy.log \
	  || { cat $(BUILD)/clang-tidy.log; exit 1; }

lint-lua:
	@luacheck --quiet --no-color lua strategies spec .luacheckrc

lint-sh:
	@shellcheck -S warning -s sh src/host.sh src/adopt.sh src/deps.sh spec/suite.sh spec/support/testbed.sh $(wildcard examples/*/*.sh) examples/hello/make-release

format: check-deps ## lay out the C sources
	clang-format -i $(FORMATTED)

asan-build:
	@$(MAKE) --no-print-directory BUILD=build/asan CC=clang OPT="-O1 -g $(SANITIZE)" \
	  LDFLAGS="$(SANITIZE) -Wl,-rpath,$(dir $(ASAN_LIB))"

build/asan/bin/lua5.4: spec/support/lua_host.c
	@mkdir -p $(@D)
	@clang $(C_FLAGS) -O1 -g $(SANITIZE) -Wl,-rpath,$(dir $(ASAN_LIB)) -o $@ $< $(shell pkg-config --libs lua5.4)

asan: check-deps ## the whole suite against a build with sanitizers; SPECS=spec/core_spec.lua for a part of it
	@$(MAKE) --no-print-directory all asan-build build/asan/bin/lua5.4
	@for each in lua strategies; do ln -sfn ../$$each build/$$each; done # a command finds what it is built beside,
	@ln -sfn /usr/include build/asan/include # and luarocks its headers beside the interpreter
	@$(ASAN_ENV) DEPLOYRT=$(CURDIR)/build/asan/deployrt SPECS="$(SPECS)" PATH="$(CURDIR)/build/asan/bin:$$PATH" \
	  BUSTED="lua5.4 $(shell command -v busted) --ignore-lua --cpath=build/asan/lib/?.so" sh spec/suite.sh $(JOBS)

build/fuzz/yaml: $(wildcard src/fuzz_yaml.c src/yaml*.c src/class.c src/error.c src/memory.c) $(GEN)
	@mkdir -p $(@D)
	@clang $(C_FLAGS) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ \
	  $(filter %.c,$^) $(LIBS)

fuzz: check-deps ## random input for the YAML reader, FUZZ_SECONDS long
	@$(MAKE) --no-print-directory build/fuzz/yaml
	@mkdir -p build/fuzz/corpus
	@build/fuzz/yaml -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=1024 -close_fd_mask=0 \
	  -artifact_prefix=build/fuzz/ -print_final_stats=1 build/fuzz/corpus
