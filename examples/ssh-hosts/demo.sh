#!/bin/sh
# demo.sh DEPLOYRT -- Makes four hosts on this machine (as root: each is a network namespace with its own sshd), and
# deploys to them. With hosts of your own you need none of this: put their names into app.yml.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$(dirname "${1:-deployrt}")" && pwd)
bed="sh $here/../../spec/support/testbed.sh"
work=$(mktemp -d "${TMPDIR:-/tmp}/deployrt-demo.XXXXXX")
export HOME="$work" XDG_STATE_HOME="$work/state" PATH="$bin:$PATH"
[ "$(id -u)" -eq 0 ] || { echo "making hosts needs root: sudo $0 $*" >&2; exit 2; }

bold="" plain=""
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi

finish() {
  status=$?
  trap - EXIT INT TERM
  deployrt stop app.yml --quiet --yes || true
  $bed down "$work/hosts"
  cd /
  rm -rf "$work"
  exit $status
}

run() { printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

cp "$here/app.yml" "$here/../hello/service.c" "$here/../hello/make-release" "$work"
cd "$work"
trap finish EXIT
trap 'exit 130' INT TERM

$bed up "$work/hosts" 4
mkdir -m 700 .ssh
for n in 1 2 3 4; do
  printf 'Host web%d\n  HostName %s\n' "$n" "$($bed address "$work/hosts" "$n")"
done > .ssh/config
printf 'Host *\n  User deploy\n  IdentityFile %s/hosts/id_ed25519\n  UserKnownHostsFile %s/hosts/known_hosts\n' "$work" "$work" >> .ssh/config

run ./make-release 1.0
run deployrt check --connect app.yml
run deployrt rolling app.yml --release 1.0
run ./make-release 2.0
run deployrt rolling app.yml --release 2.0
run deployrt status app.yml
run deployrt exec app.yml -- uptime -p
run deployrt rollback app.yml
run curl -s http://127.0.0.1:18090/
echo
