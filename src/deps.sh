#!/bin/sh
# deps.sh -- Installs what deployrt is built, tested and demonstrated with, where it is missing (Debian, Ubuntu).
# `deps.sh checks` installs what analysers, sanitizers and fuzzing need as well.
set -eu

build="gcc make pkg-config lua5.4 liblua5.4-dev libuv1-dev libssh2-1-dev libssl-dev libcurl4-openssl-dev libyaml-dev lua-cjson lua-cjson-dev"
run="haproxy curl openssh-client tar"
test="lua-busted luarocks git nginx caddy openssl etcd-server prometheus openssh-server iproute2 nftables procps socat busybox-static python3 groff man-db zsh libfaketime"
command -v javac > /dev/null && command -v java > /dev/null || test="$test default-jdk-headless" # whichever JDK is there will do
checks="clang clang-tidy clang-format cppcheck lua-check shellcheck"

needed="$build $run $test"
[ "${1:-}" != checks ] || needed="$needed $checks"

if ! command -v dpkg-query > /dev/null; then
  command -v lua5.4 > /dev/null && command -v busted > /dev/null && command -v haproxy > /dev/null &&
    pkg-config --exists libuv libssh2 libcrypto yaml-0.1 libcurl && exit 0
  echo "deployrt needs, by their names in Debian: $needed"
  echo "Install them with this system's package manager (as root), then run make again."
  exit 1
fi

policy=''
# Servers come with the packages; none of them is to be started.
forbid_servers() {
  [ ! -e /usr/sbin/policy-rc.d ] || return 0
  policy=/usr/sbin/policy-rc.d
  printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy > /dev/null
  $sudo chmod 755 $policy
}

apt() { # package... -- says nothing unless it fails
  log=$(mktemp)
  status=0
  { $sudo apt-get install -y -q --no-install-recommends "$@" ||
    { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends "$@"; }; } > "$log" 2>&1 || status=$?
  [ $status -eq 0 ] || cat "$log"
  rm -f "$log"
  return $status
}

install_missing() { # package...
  missing=''
  for package; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  sudo=''
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || { echo "as root: apt-get install$missing"; exit 1; }
    sudo=sudo
  fi
  export DEBIAN_FRONTEND=noninteractive
  echo "installing:$missing"
  forbid_servers
  status=0
  # shellcheck disable=SC2086
  apt $missing || status=$?
  [ -z "$policy" ] || $sudo rm -f "$policy"
  policy=''
  return $status
}

# shellcheck disable=SC2086
install_missing $needed
# The sanitizers' library is a package of its own, named after the compiler's version.
[ "${1:-}" != checks ] || install_missing "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
