#!/bin/sh
# suite.sh -- Runs the spec files side by side, so many at a time, and adds up what busted counted.
#
#   suite.sh JOBS [busted's options]      SPECS="spec/a_spec.lua ..." for some of the files; BUSTED for another busted
#
# Each file is a busted of its own, shown when it has failed. SPEC_WORKER keeps the ports of the workers apart.
# What takes longest begins first, or the others wait for it at the end: so each file may say `-- weight: N`, by default 1.
set -u
jobs=$1
shift
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'exit 130' INT TERM

# shellcheck disable=SC2086 # words; the names of specs are plain
for file in ${SPECS:-spec/*_spec.lua}; do
  weight=$(sed -n 's/^-- weight: \([0-9]*\)$/\1/p;10q' "$file")
  echo "${weight:-1} $file"
done | sort -k 1,1nr -k 2 | cut -d' ' -f2 | LOGS=$logs xargs -P "$jobs" --process-slot-var=SPEC_WORKER -I{} sh -c '
  file=$1
  shift
  log=$LOGS/$(basename "$file")
  started=$(date +%s)
  ${BUSTED:-busted} "$@" "$file" > "$log" 2>&1
  echo "exit $?" >> "$log"
  printf "%-32s %4ds  %s\n" "$file" "$(($(date +%s) - started))" "$(grep -E "^[0-9]+ success" "$log" | sed "s/ :.*//")"
' suite {} "$@"

# A file that ended otherwise than by saying what it counted is an error.
for log in "$logs"/*; do
  if grep -qE '^[0-9]+ success' "$log" && [ "$(tail -n 1 "$log")" = "exit 0" ]; then continue; fi
  echo
  echo "== $(basename "$log")"
  cat "$log"
done
cat "$logs"/* | awk '
  /^[0-9]+ success.* pending/ { passed += $1; failed += $4; errors += $7; pending += $10; files++ }
  END { printf "%d successes / %d failures / %d errors / %d pending : %d files\n", passed, failed, errors, pending, files
        exit failed + errors > 0 }' && [ "$(cat "$logs"/* | grep -c '^exit 0')" = "$(find "$logs" -type f | wc -l)" ]
