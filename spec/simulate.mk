# A long simulation of every shipped strategy; not part of `make test`. Included by the Makefile.
SEEDS ?= 100000

.PHONY: simulate

simulate: all ## SEEDS simulated deployments of each shipped strategy, with faults
	@for s in rolling in_place blue_green canary canary_blue_green ab; do '$(BUILD)/deployrt' test $$s --seeds $(SEEDS) || exit 1; done
