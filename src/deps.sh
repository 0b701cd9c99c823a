#!/bin/sh
# deps.sh -- Installs what deployrt is built, tested and demonstrated with, where it is missing (Debian, Ubuntu).
set -eu

build="gcc make pkg-config lua5.4 liblua5.4-dev libuv1-dev libssh2-1-dev libssl-dev libcurl4-openssl-dev libyaml-dev lua-cjson lua-cjson-dev"
run="haproxy curl openssh-client tar"
test="lua-busted etcd-server openssh-server iproute2 nftables procps socat busybox-static python3 groff man-db zsh"

missing=""
if command -v dpkg-query > /dev/null; then
  for package in $build $run $test; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
else
  command -v lua5.4 > /dev/null && command -v busted > /dev/null && command -v haproxy > /dev/null &&
    pkg-config --exists libuv libssh2 libcrypto yaml-0.1 libcurl && exit 0
  echo "deployrt needs, by their names in Debian: $build $run $test"
  echo "Install them with this system's package manager (as root), then run make again."
  exit 1
fi
[ -n "$missing" ] || exit 0
echo "installing:$missing"
sudo=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo > /dev/null || { echo "as root: apt-get install$missing"; exit 1; }
  sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
# Servers come with the packages; none of them is to be started.
policy=""
if [ ! -e /usr/sbin/policy-rc.d ]; then
  policy=/usr/sbin/policy-rc.d
  printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy > /dev/null
  $sudo chmod 755 $policy
fi
status=0
# shellcheck disable=SC2086
{ $sudo apt-get install -y -q --no-install-recommends $missing ||
  { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; }; } > /tmp/deployrt-deps.$$ 2>&1 || status=$?
[ $status -eq 0 ] || cat /tmp/deployrt-deps.$$
rm -f /tmp/deployrt-deps.$$
[ -z "$policy" ] || $sudo rm -f $policy
exit $status
