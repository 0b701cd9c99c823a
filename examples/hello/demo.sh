#!/bin/sh
# demo.sh DEPLOYRT -- Deploys 1.0, then 2.0 as a canary under load, then a 3.0 that is broken. Nothing stays behind.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$(dirname "${1:-deployrt}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/deployrt-demo.XXXXXX")
load=""
export HOME="$work" XDG_STATE_HOME="$work/state" PATH="$bin:$PATH"

bold="" plain=""
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi

finish() {
  status=$?
  trap - EXIT INT TERM
  [ -z "$load" ] || kill "$load" 2> /dev/null || true
  deployrt stop app.yml --quiet --yes || true
  cd /
  rm -rf "$work"
  exit $status
}

say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

# Ports 18080 to 18084, or the next such row that nobody listens on.
row=1808
while grep -qE ":($(printf '%04X|%04X|%04X|%04X|%04X' ${row}0 ${row}1 ${row}2 ${row}3 ${row}4)) 0+:0000 0A" /proc/net/tcp; do
  row=$((row + 10))
done
cp "$here/service.c" "$here/make-release" "$work"
sed "s/1808/$row/g" "$here/app.yml" > "$work/app.yml"
cc -O2 -o "$work/load" "$here/../../spec/support/load.c"
cd "$work"
trap finish EXIT
trap 'exit 130' INT TERM

say "The first release, on this machine: two instances behind HAProxy."
run ./make-release 1.0
run deployrt rolling app.yml --release 1.0 --set strategy.settle=500ms

say "2.0 as a canary, while 16 clients send requests without a pause."
run ./make-release 2.0
./load --port ${row}0 --connections 16 > load.json &
load=$!
run deployrt canary app.yml --release 2.0 --set strategy.hold=1s
kill "$load"
wait "$load" || true
load=""
lua5.4 - load.json <<'LUA'
local counts = require("cjson").decode(io.open(arg[1]):read "a")
for _, version in ipairs { "1.0", "2.0" } do
  print(("  %s answered %d requests"):format(version, counts.versions[version] or 0))
end
print(("  failed: %d"):format(counts.failed))
os.exit(counts.failed == 0 and counts.versions["2.0"] ~= nil)
LUA

say "3.0 is broken: it dies at its start. The old release keeps serving."
run ./make-release 3.0 fault=dies
status=0
run deployrt rolling app.yml --release 3.0 || status=$?
echo "exit status: $status"
[ $status -eq 1 ]
echo
run deployrt status app.yml
run curl -s "http://127.0.0.1:${row}0/"
echo
