# Builds deployrt, its Lua module and its tests. `make help` lists the targets.
BUILD   ?= build
PREFIX  ?= /usr/local
JOBS    ?= 5
VERSION := 0.1.0

PACKAGES := lua5.4 libuv libssh2 libcrypto yaml-0.1 lua5.4-cjson
WARN     := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes
OPT      ?= -O2 -g
CFLAGS   += -std=gnu11 -D_GNU_SOURCE -DDEPLOYRT_VERSION='"$(VERSION)"' $(WARN) $(OPT) -fPIC -MMD -MP \
            -I$(BUILD)/gen $(filter-out -I/usr/include/lua5.4,$(shell pkg-config --cflags $(PACKAGES) libcurl 2>/dev/null)) \
            $(addprefix -isystem,$(shell pkg-config --cflags-only-I lua5.4 2>/dev/null | sed 's/-I//g'))
LIBS     := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -ldl -lm

COMMAND := src/main.c src/modules.c
CORE   := $(filter-out $(COMMAND) $(wildcard src/fuzz_*.c),$(wildcard src/*.c))
OBJ    := $(patsubst src/%.c,$(BUILD)/obj/%.o,$(CORE))
LUA    := $(sort $(shell find lua strategies -name '*.lua' 2>/dev/null))
GEN    := $(BUILD)/gen/host_library.h $(BUILD)/gen/adopt_library.h

QUIET  = @printf '%-5s %s\n'

.PHONY: all help deps demo test clean
.DELETE_ON_ERROR:

all: $(BUILD)/deployrt $(BUILD)/lib/deployrt/core.so ## build the command and the Lua module

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(BUILD)/obj/%.o: src/%.c $(GEN)
	@mkdir -p $(@D)
	$(QUIET) CC $<
	@$(CC) $(CFLAGS) -c -o $@ $<

$(BUILD)/gen/%_library.h: src/%.sh src/embed.lua
	@mkdir -p $(@D)
	$(QUIET) GEN $@
	@lua5.4 src/embed.lua string $*_library $< > $@

$(BUILD)/gen/embedded.c: $(LUA) src/embed.lua Makefile
	@mkdir -p $(@D)
	$(QUIET) GEN $@
	@lua5.4 src/embed.lua table $(LUA) > $@

$(BUILD)/obj/embedded.o: $(BUILD)/gen/embedded.c
	@mkdir -p $(@D)
	$(QUIET) CC $<
	@$(CC) $(CFLAGS) -Isrc -Wno-overlength-strings -c -o $@ $<

$(BUILD)/deployrt: $(OBJ) $(patsubst src/%.c,$(BUILD)/obj/%.o,$(COMMAND)) $(BUILD)/obj/embedded.o
	$(QUIET) LINK $@
	@$(CC) $(LDFLAGS) -Wl,--as-needed -o $@ $^ $(LIBS)

$(BUILD)/lib/deployrt/core.so: $(OBJ)
	@mkdir -p $(@D)
	$(QUIET) LINK $@
	@$(CC) $(LDFLAGS) -shared -Wl,--as-needed -Wl,-z,nodelete -o $@ $^ $(LIBS)

deps: ## install what is missing (Debian, Ubuntu); elsewhere say what is needed
	@sh src/deps.sh

demo: deps ## deploy for real on this machine: a canary under load, then a release that is broken
	@$(MAKE) --no-print-directory all
	@sh examples/hello/demo.sh $(BUILD)/deployrt

# deps comes first even under -j: what is to be built needs what it installs.
test: deps ## run every test
	@$(MAKE) --no-print-directory all
	@sh spec/suite.sh $(JOBS)

clean: ## remove what was built
	rm -rf $(BUILD)

-include $(wildcard spec/*.mk)
-include $(wildcard $(BUILD)/obj/*.d)
