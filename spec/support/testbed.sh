#!/bin/sh
# testbed.sh -- Test hosts with addresses of their own: network namespaces, each with its own processes, files and sshd.
# usage: testbed.sh up DIR N | down DIR | off|on|cut|mend DIR I | lossy DIR I PERCENT | exec DIR I COMMAND
set -eu
PATH=$PATH:/usr/sbin:/sbin
command=$1 dir=$2
shift 2

subnet_free() { ! ip route | grep -q "^10\.$1\.$2\."; }

names() { # sets id, net: short, unique to this bed
  id=$(cat "$dir/id") net=$(cat "$dir/net")
}

begin() { # chooses an id and a free subnet
  mkdir -p "$dir"
  printf '%05x' "$(($$ % 1048576))" > "$dir/id"
  third=$(($$ % 250))
  until subnet_free 203 "$third"; do third=$(((third + 1) % 250)); done
  printf '10.203.%s' "$third" > "$dir/net"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/id_ed25519"
  names
  ip link add "b$id" type bridge
  ip addr add "$net.1/24" dev "b$id"
  ip link set "b$id" up
}

make_host() { # I -- namespace, link, keys and layers of files
  i=$1 h=$dir/host$1 ns=t$id-$1
  mkdir -p "$h"
  ip netns add "$ns"
  ip link add "v$id$i" type veth peer name eth0 netns "$ns"
  ip link set "v$id$i" master "b$id" up
  ip -n "$ns" addr add "$net.$((10 + i))/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" link set lo up
  ip -n "$ns" route add default via "$net.1"
  ssh-keygen -q -t ed25519 -N '' -f "$h/host_key"
  printf '%s %s\n' "$net.$((10 + i))" "$(cut -d' ' -f1,2 "$h/host_key.pub")" >> "$dir/known_hosts"
  mkdir -p "$h/etc" "$h/etc.work" "$h/var" "$h/var.work" "$h/home/deploy/.ssh" "$h/empty"
  cp "$dir/id_ed25519.pub" "$h/home/deploy/.ssh/authorized_keys"
  chown -R 4242:4242 "$h/home/deploy"
  chmod 700 "$h/home/deploy" "$h/home/deploy/.ssh"
  { cat /etc/passwd; echo 'deploy:x:4242:4242::/home/deploy:/bin/sh'; } > "$h/etc/passwd"
  { cat /etc/group; echo 'deploy:x:4242:'; } > "$h/etc/group"
  { cat /etc/shadow; echo 'deploy:*:19000:0:99999:7:::'; } > "$h/etc/shadow"
  chmod 600 "$h/etc/shadow"
  cat > "$h/sshd_config" <<CONFIG
Port 22
HostKey $h/host_key
UsePAM no
StrictModes no
PidFile none
MaxStartups 200
MaxSessions 20
PasswordAuthentication no
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
AuthorizedKeysFile .ssh/authorized_keys
CONFIG
  cat > "$h/init" <<INIT
set -e
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/etc,upperdir=$h/etc,workdir=$h/etc.work /etc
mount -t overlay overlay -o lowerdir=/var,upperdir=$h/var,workdir=$h/var.work /var
mount --bind $h/home /home
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
hostname web$i
exec /usr/sbin/sshd -D -e -f $h/sshd_config
INIT
}

power_on() { # I
  h=$dir/host$1
  setsid nsenter --net="/run/netns/t$id-$1" unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc \
    sh "$h/init" < /dev/null >> "$h/log" 2>&1 &
  echo $! > "$h/pid"
}

await() { # I -- until its sshd listens
  n=0
  until ip netns exec "t$id-$1" ss -ltn 2> /dev/null | grep -q ':22 '; do
    n=$((n + 1))
    [ $n -lt 200 ] || { cat "$dir/host$1/log" >&2; return 1; }
    sleep 0.02
  done
}

power_off() { # I
  pid=$(cat "$dir/host$1/pid")
  for child in $(pgrep -P "$pid" 2> /dev/null); do kill -KILL "$child" 2> /dev/null || true; done
  kill -KILL "$pid" 2> /dev/null || true
  n=0
  while [ -d "/proc/$pid" ] && ! grep -q '^State:.[ZX]' "/proc/$pid/status" 2> /dev/null && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.02; done
}

case $command in
  up)
    begin
    for i in $(seq 1 "$1"); do make_host "$i"; power_on "$i"; done
    for i in $(seq 1 "$1"); do await "$i"; done
    ;;
  down)
    [ -e "$dir/id" ] || exit 0
    names
    for h in "$dir"/host*; do
      [ -d "$h" ] || continue
      i=${h##*host}
      [ ! -e "$h/pid" ] || power_off "$i"
      ip link del "v$id$i" 2> /dev/null || true
      ip netns del "t$id-$i" 2> /dev/null || true
    done
    ip link del "b$id" 2> /dev/null || true
    ;;
  off) names; power_off "$1" ;;
  on) names; power_on "$1"; await "$1" ;;
  cut) names; ip link set "v$id$1" down ;;
  mend) names; ip link set "v$id$1" up ;;
  lossy)
    names
    nft add table netdev "t$id$1"
    nft add chain netdev "t$id$1" in "{ type filter hook ingress device v$id$1 priority 0; }"
    nft flush chain netdev "t$id$1" in
    [ "$2" = 0 ] || nft add rule netdev "t$id$1" in numgen random mod 100 '<' "$2" drop
    ;;
  exec)
    names
    pid=$(pgrep -P "$(cat "$dir/host$1/pid")" | head -n 1)
    shift
    exec nsenter -t "$pid" --all sh -c "$*"
    ;;
  address) names; echo "$net.$((10 + $1))" ;;
  *) echo "testbed.sh: no such command: $command" >&2; exit 2 ;;
esac
