# Measurements against targets, and against peers in the same run. Included by the Makefile.
# DEPLOYRT_BENCH_REF names a directory with reference programs; without it their ratios are left out.
.PHONY: bench

bench: deps ## measure against the targets; BENCH=exec for one of start, rolling, load, balancers, evidence, exec, upload, memory
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' DEPLOYRT='$(abspath $(BUILD))/deployrt' LUA_PATH='lua/?.lua;?.lua;;' LUA_CPATH='$(BUILD)/lib/?.so;;' \
	  lua5.4 spec/bench/run.lua $(BENCH)
