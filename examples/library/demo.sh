#!/bin/sh
# demo.sh DEPLOYRT -- Publishes the library as a git repository, locks it, and deploys a service with two of its strategies.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$(dirname "${1:-deployrt}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/deployrt-library.XXXXXX")
export HOME="$work" XDG_STATE_HOME="$work/state" PATH="$bin:$PATH"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=acme GIT_AUTHOR_EMAIL=acme@example GIT_COMMITTER_NAME=acme GIT_COMMITTER_EMAIL=acme@example

finish() {
  status=$?
  trap - EXIT INT TERM
  deployrt stop app.yml --quiet --yes || true
  cd /
  rm -rf "$work"
  exit $status
}

say() { printf '\n# %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "The library is a git repository with Lua files, and a tag."
mkdir "$work/acme-strategies" "$work/shop"
cp -R "$here/acme" "$work/acme-strategies"
git -C "$work/acme-strategies" init -q
git -C "$work/acme-strategies" add .
git -C "$work/acme-strategies" commit -q -m "How Acme deploys"
git -C "$work/acme-strategies" tag v1.0.0

row=1818
while grep -qE ":($(printf '%04X|%04X|%04X|%04X|%04X' ${row}0 ${row}1 ${row}2 ${row}3 ${row}4)) 0+:0000 0A" /proc/net/tcp; do
  row=$((row + 10))
done
sed "s/1818/$row/g" "$here/shop/app.yml" > "$work/shop/app.yml"
cp "$here/../hello/service.c" "$here/../hello/make-release" "$work/shop"
cd "$work/shop"
trap finish EXIT
trap 'exit 130' INT TERM

say "app.yml requires it; what is fetched is locked, file by file."
run deployrt lib install
run deployrt lib list
run deployrt help waves

say "A first release, then a second one in waves, and a third that needs a second key."
run ./make-release 1.0
run deployrt waves app.yml --release 1.0 --set strategy.settle=200ms
run ./make-release 2.0
run deployrt waves app.yml --release 2.0 --set strategy.settle=200ms
run ./make-release 3.0
run deployrt two_keys app.yml --release 3.0 --set strategy.settle=200ms --yes

say "Code that is not as deployrt.lock says is not run."
echo "-- changed" >> .deployrt/lib/acme-strategies/acme/waves.lua
status=0
run deployrt waves app.yml --release 4.0 || status=$?
[ $status -eq 2 ]
