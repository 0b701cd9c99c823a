#!/bin/sh
# demo.sh DEPLOYRT -- Takes over a Java service that was started by hand, deploys twice, and fails twice, all under load.
# Nothing stays behind.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$(dirname "${1:-deployrt}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/deployrt-demo.XXXXXX")
load="" nginx="" java=""
export HOME="$work" XDG_STATE_HOME="$work/state" PATH="$bin:$PATH:/usr/sbin"

bold="" plain=""
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi

finish() {
  status=$?
  trap - EXIT INT TERM
  for pid in $load $java; do kill "$pid" 2> /dev/null || true; done
  deployrt stop app.yml --quiet --yes || true
  for pid in $nginx; do kill "$pid" 2> /dev/null && wait "$pid" || true; done
  cd /
  rm -rf "$work"
  exit $status
}

say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
fails() { # STATUS COMMAND... -- which ends with that status
  expected=$1 status=0
  shift
  run "$@" || status=$?
  echo "exit status: $status"
  [ $status -eq "$expected" ]
}
await() { # COMMAND... -- until it succeeds
  tries=0
  until "$@" > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "never: $*" >&2; exit 1; }
    sleep 0.1
  done
}

# Ports 18380 (the service), 18382 (its other one) and 18388 (nginx), or the next such row that nobody listens on.
row=1838
while grep -qE ":($(printf '%04X|%04X|%04X' ${row}0 ${row}2 ${row}8)) 0+:0000 0A" /proc/net/tcp /proc/net/tcp6; do
  row=$((row + 10))
done
cp "$here/Service.java" "$here/build.sh" "$work"
for file in app.yml nginx.conf; do
  sed "s/808\([028]\)/$row\1/g; s,/etc/nginx/,$work/,; s,^pid ,&$work/,; s,include ,&$work/," "$here/$file" > "$work/$file"
done
cc -O2 -o "$work/load" "$here/../../spec/support/load.c"
cd "$work"
trap finish EXIT
trap 'exit 130' INT TERM

say "What there is: version 1.0, started by hand, and an nginx in front of it."
run env RELEASE=1.0 ./build.sh
mkdir by-hand
cp -r release/. by-hand
(cd by-hand && exec nohup java -Dserver.port=${row}0 -cp . Service > nohup.out 2>&1) &
java=$!
echo "set \$service_url http://127.0.0.1:${row}0;" > service-url.inc
nginx -e error.log -c "$work/nginx.conf" -g 'daemon off;' &
nginx=$!
await curl -sf "http://127.0.0.1:${row}8/healthz"
run cat service-url.inc
run deployrt check app.yml --connect

say "From now on 8 clients send requests. 2.0 is built, started beside 1.0, and takes over; only then 1.0 is stopped."
./load --port ${row}8 --connections 8 --rate 400 --no-keepalive > load.json &
load=$!
run deployrt blue_green app.yml --release 2.0 --set strategy.settle=1s
java=""
run cat service-url.inc

say "3.0 goes back to the other port."
run deployrt blue_green app.yml --release 3.0 --set strategy.settle=1s
run cat service-url.inc

say "4.0 does not compile: nothing is changed."
sed 's/int port/it port/' "$here/Service.java" > Service.java
fails 2 deployrt blue_green app.yml --release 4.0

say "5.0 never gets healthy: nginx never hears of it."
cp "$here/Service.java" .
fails 1 deployrt blue_green app.yml --release 5.0 --set 'process.env={JAVA_TOOL_OPTIONS: -Dsick=true}' --set health.deadline=5s

say "And back to what served before."
run deployrt rollback app.yml
run deployrt status app.yml
kill "$load"
wait "$load" || true
load=""
lua5.4 - load.json <<'LUA'
local counts = require("cjson").decode(io.open(arg[1]):read "a")
for _, version in ipairs { "1.0", "2.0", "3.0" } do
  print(("  %s answered %d requests"):format(version, counts.versions[version] or 0))
end
print(("  failed: %d"):format(counts.failed))
os.exit(counts.failed == 0 and counts.versions["3.0"] ~= nil)
LUA
