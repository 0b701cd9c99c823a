# A long run of everything that can go wrong at once; not part of `make test`. Included by the Makefile.
SOAK_SECONDS ?= 600

.PHONY: soak

soak: deps ## random faults for SOAK_SECONDS, as root; SEED= repeats one
	@$(MAKE) --no-print-directory all
	@LUA_PATH="lua/?.lua;?.lua" LUA_CPATH="$(BUILD)/lib/?.so;$$(lua5.4 -e 'io.write(package.cpath)')" \
	  lua5.4 spec/soak/run.lua $(SOAK_SECONDS) $(SEED)
