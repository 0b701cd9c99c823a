# A long run of everything that can go wrong at once; not part of `make test`. Included by the Makefile.
SOAK_SECONDS ?= 600

.PHONY: soak kills

soak: deps ## random faults for SOAK_SECONDS, as root; SEED= repeats one
	@$(MAKE) --no-print-directory all
	@LUA_PATH="lua/?.lua;?.lua;;" LUA_CPATH="$(BUILD)/lib/?.so;;" \
	  lua5.4 spec/soak/run.lua $(SOAK_SECONDS) $(SEED)

kills: deps ## kill the controller at every operation of each strategy, and go both ways from there
	@$(MAKE) --no-print-directory all
	@KILLS=all busted spec/resume_spec.lua
