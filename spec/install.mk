# Installs below PREFIX, keeps a list of what it made there, and removes that again. Included by the Makefile.
# DESTDIR goes in front of every path that is written, for packagers; nothing needs root then.
# The Lua files lie in one place, below share/deployrt: the command reads them there, and stock Lua finds them
# through a link. Who edits a copy changes what both run; `make install` puts the shipped ones back.
SHARED    = $(LUA) $(wildcard lua/*.md strategies/*.md)
INSTALLED = $(BUILD)/deployrt:755:bin/deployrt \
            $(foreach file,$(SHARED),$(file):644:share/deployrt/$(file)) \
            $(BUILD)/lib/deployrt/core.so:644:lib/lua/5.4/deployrt/core.so \
            ../../deployrt/lua/deployrt:link:share/lua/5.4/deployrt \
            $(BUILD)/deployrt.1:644:share/man/man1/deployrt.1 \
            src/completion/deployrt.bash:644:share/bash-completion/completions/deployrt \
            src/completion/_deployrt:644:share/zsh/site-functions/_deployrt \
            $(foreach file,$(wildcard README.md LICENSE),$(file):644:share/doc/deployrt/$(file))

# A line a path, as it is without DESTDIR, in the order in which they were made; a directory ends in a slash.
INSTALL_LIST = $(PREFIX)/share/deployrt/installed

.PHONY: install uninstall

install: all $(BUILD)/deployrt.1 ## put everything below PREFIX (/usr/local); DESTDIR= is for packagers
	@[ ! -f '$(DESTDIR)$(INSTALL_LIST)' ] || $(MAKE) --no-print-directory uninstall
	@set -eu; made=$$(mktemp); list='$(DESTDIR)$(INSTALL_LIST)'; \
	trap '[ ! -f "$$list" ] || cat "$$made" > "$$list"; rm -f "$$made"' EXIT; \
	directory() { \
	  [ "$$1" != / ] && [ "$$1" != . ] || { install -d '$(DESTDIR)/'; return; }; \
	  [ ! -d '$(DESTDIR)'"$$1" ] || return 0; \
	  directory "$$(dirname "$$1")"; \
	  install -d -m 755 '$(DESTDIR)'"$$1"; \
	  printf '%s/\n' "$$1" >> "$$made"; \
	}; \
	put() { \
	  directory "$$(dirname "$$3")"; \
	  if [ "$$2" = link ]; then ln -sT "$$1" '$(DESTDIR)'"$$3"; \
	  else install -m "$$2" "$$1" '$(DESTDIR)'"$$3"; fi; \
	  printf '%s\n' "$$3" >> "$$made"; \
	}; \
	put /dev/null 644 '$(INSTALL_LIST)'; \
	for entry in $(INSTALLED); do \
	  place=$${entry#*:}; \
	  put "$${entry%%:*}" "$${place%%:*}" '$(PREFIX)/'"$${place#*:}"; \
	done
	$(QUIET) PUT '$(DESTDIR)$(PREFIX)/bin/deployrt'

uninstall: ## remove what install put there
	@set -eu; list='$(DESTDIR)$(INSTALL_LIST)'; \
	[ -f "$$list" ] || { echo "nothing is installed below $(DESTDIR)$(PREFIX): there is no $$list"; exit 0; }; \
	tac "$$list" | { failed=0; while read -r path; do \
	  case $$path in \
	    */) rmdir '$(DESTDIR)'"$$path" 2>/dev/null || :;; \
	    '$(INSTALL_LIST)') [ $$failed = 1 ] || rm -f "$$list";; \
	    *) rm -f '$(DESTDIR)'"$$path" || failed=1;; esac; \
	done; exit $$failed; }

# The lists of commands, options and strategies in the manual come from the command itself.
ROFF      = $(BUILD)/gen
ROFF_LIST = sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/" \
            | awk '{ print ".TP\n\\fB" $$1 "\\fR" substr($$0, length($$1) + 1); getline; print }'

$(BUILD)/deployrt.1: src/deployrt.1 spec/install.mk $(BUILD)/deployrt
	$(QUIET) GEN $@
	@mkdir -p $(ROFF)
	@$(BUILD)/deployrt help > /dev/null
	@$(BUILD)/deployrt help | sed -n 's/^deployrt \([a-z_]\{1,\}\).*/\1/p' | while read -r command; do \
	  $(BUILD)/deployrt help $$command | sed -e '/^$$/,$$d' -e '1s/^deployrt //' -e 's/^ *//'; \
	done | $(ROFF_LIST) > $(ROFF)/commands.roff
	@$(BUILD)/deployrt help | sed -n 's/^  \(--[a-z-]* [A-Z=]*\) *\(.*\)/\1\n\2/p' \
	  | $(ROFF_LIST) > $(ROFF)/options.roff
	@for file in $(wildcard strategies/*.lua); do \
	  $(BUILD)/deployrt help $$file | sed -n '1s/: /\n/p'; \
	done | $(ROFF_LIST) > $(ROFF)/strategies.roff
	@sed -e 's/@version@/$(VERSION)/' -e '/^@commands@/{r $(ROFF)/commands.roff' -e 'd}' \
	  -e '/^@options@/{r $(ROFF)/options.roff' -e 'd}' \
	  -e '/^@strategies@/{r $(ROFF)/strategies.roff' -e 'd}' src/deployrt.1 > $@
