#!/bin/sh
# testbed.sh -- Hosts to deploy to on one machine, each with an address, processes, files and an sshd of its own.
#
#   testbed.sh up DIR N               hosts web1 to webN; all that they are lies in DIR
#   testbed.sh loopback DIR N PORT    one sshd that answers for N addresses of 127.0.1.0/24
#   testbed.sh off|on DIR n           power: off is SIGKILL for all and silence on the wire; files persist
#   testbed.sh cut|mend DIR n         the network cable; whatever runs on the host runs on
#   testbed.sh lossy DIR n PERCENT    drops packets both ways; 0 ends it, and so does a power cycle
#   testbed.sh exec DIR n COMMAND     a shell line on the host, as root
#   testbed.sh address DIR n          the host's address
#   testbed.sh down DIR               removes everything, also what a failed `up` has left
#
# DIR/id_ed25519 opens the account `deploy` of every host; DIR/known_hosts holds their keys; DIR/bed is this
# script's own note. It needs root. The names of links and namespaces come from the subnet, so beds beside
# each other never meet.
set -eu
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
self=$(readlink -f "$0")
uid=20001
jobs=''
host_path=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin

die() {
  echo "testbed: $*" >&2
  exit 1
}

load_bed() {
  [ -f "$dir/bed" ] || die "no test bed in $dir; make one with: testbed.sh up $dir N"
  . "$dir/bed"
}

# Sets what belongs to host number $1.
choose_host() {
  case $1 in '' | *[!0-9]*) die "'$1' is not the number of a host" ;; esac
  [ "$1" -ge 1 ] && [ "$1" -le "$count" ] || die "there is no host $1; the bed has $count"
  n=$1 name=web$1 host=$dir/web$1 ns=$bridge-web$1 link=$bridge-$1
}

# A zombie is dead: whoever adopts orphans may take its time to reap them.
is_alive() {
  [ -n "$1" ] && state=$(grep -s ^State: "/proc/$1/status") || return 1
  case $state in *Z* | *X*) return 1 ;; esac
}

# Waits up to 5 s for a condition.
await() {
  tries=500
  until "$@"; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || return 1
    sleep 0.01
  done
}

read_pid() {
  cat "$host/$1" 2>/dev/null || true
}

save_bed() {
  echo "kind=$kind bridge=$bridge net=$net group=$group count=$count port=$port" >"$dir/bed"
}

# The bridge's name stands for the subnet: whoever makes it first owns both.
make_bridge() {
  for _ in $(seq 20); do
    # shellcheck disable=SC2046
    set -- $(od -An -N2 -tu1 /dev/urandom)
    net=10.$1.$2
    [ -z "$(ip -4 route show match "$net.1" | grep -v ^default)" ] || continue
    [ -z "$(ip -4 route show root "$net.0/24")" ] || continue
    bridge=dr$(printf '%02x%02x' "$1" "$2") group=$((1000000 + $1 * 256 + $2))
    ip link add name "$bridge" group $group type bridge mcast_snooping 0 2>"$dir/trouble" || continue
    save_bed
    ip address add "$net.1/24" dev "$bridge"
    ip link set "$bridge" up
    return
  done
  die "cannot make a bridge: $(cat "$dir/trouble" 2>/dev/null)"
}

# The files in which the host differs from this machine.
furnish() {
  mkdir -p "$host/etc/ssh" "$host/var" "$host/opt" "$host/srv" "$host/home/deploy/.ssh" "$host/empty"
  mkdir -m 700 "$host/root"
  for each in etc var root home opt srv; do mkdir -p "$host/work/$each"; done
  { grep -v ^deploy: /etc/passwd && echo "deploy:x:$uid:$uid::/home/deploy:/bin/sh"; } >"$host/etc/passwd"
  { grep -v ^deploy: /etc/group && echo "deploy:x:$uid:"; } >"$host/etc/group"
  (umask 077 && { grep -v ^deploy: /etc/shadow && echo "deploy:*:19000:0:99999:7:::"; } >"$host/etc/shadow")
  echo "$name" >"$host/etc/hostname"
  echo "127.0.0.1 localhost $name" >"$host/etc/hosts"
  cp "$dir/id_ed25519.pub" "$host/home/deploy/.ssh/authorized_keys"
  chmod 700 "$host/home/deploy/.ssh"
  chown -R $uid:$uid "$host/home/deploy"
  ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$host/etc/ssh/testbed_key"
  cat >"$host/etc/ssh/testbed_config" <<END
Port $port
HostKey /etc/ssh/testbed_key
PidFile /run/testbed/sshd.pid
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
MaxStartups 200
MaxSessions 20
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
Subsystem sftp internal-sftp
END
}

# The hardware address survives a power cycle, so the neighbours' tables stay right.
plug() {
  hex=${bridge#dr}
  ip netns add "$ns"
  ip link add name "$link" group "$group" type veth peer name eth0 \
    address "02:de:${hex%??}:${hex#??}:00:$(printf %02x "$n")" netns "$ns"
  ip link set "$link" master "$bridge" up
  ip -n "$ns" -batch - <<END
link set lo up
address add $net.$((10 + n))/24 dev eth0
link set eth0 up
END
}

# The host's first process is the child of `unshare`; its death takes the whole host along.
boot() {
  set -- unshare
  [ "$kind" = loopback ] || set -- nsenter --net="/run/netns/$ns" unshare --uts --ipc
  rm -f "$host/init"
  setsid "$@" --mount --pid --fork --kill-child --mount-proc sh "$self" inside "$host" "$name" "$kind" \
    </dev/null >>"$host/console" 2>&1 &
  echo $! >"$host/pid"
  await has_booted && [ -s "$host/init" ] || die "$name did not start: $(tail -n 3 "$host/console")"
}

has_booted() {
  pid=$(read_pid pid)
  is_alive "$pid" || return 0
  init=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true)
  init=${init%% *}
  [ -n "$init" ] && [ -s "/proc/$init/root/run/testbed/sshd.pid" ] && echo "$init" >"$host/init"
}

# Runs as the host's first process: gives it its own files, then becomes its sshd.
inside() {
  host=$1 name=$2 kind=$3
  for each in etc var root home opt srv; do
    case $each in etc | var) lower=/$each ;; *) lower=$host/empty ;; esac
    [ -d /$each ] || continue
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$host/$each,workdir=$host/work/$each" /$each
  done
  mount -t tmpfs -o mode=755 tmpfs /run
  if [ "$kind" = hosts ]; then
    hostname "$name"
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t tmpfs -o mode=1777 tmpfs /tmp
  fi
  cat /proc/sys/kernel/random/uuid >/run/boot_id
  mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
  mkdir -p /run/sshd /run/testbed /run/lock
  cd /
  exec env -i PATH=$host_path HOME=/root /usr/sbin/sshd -D -e -f /etc/ssh/testbed_config
}

power_on() {
  ! is_alive "$(read_pid init)" || return 0
  [ "$kind" = loopback ] || plug
  boot
}

# The wire goes first: a machine without power does not say goodbye to its peers.
power_off() {
  ip link delete "$link" 2>/dev/null || true
  kill_host
  [ ! -e "/run/netns/$ns" ] || ip netns delete "$ns"
}

# Only processes that still are this host's are killed; after a crash the numbers may belong to others.
kill_host() {
  pid=$(read_pid pid) init=$(read_pid init)
  grep -qsF testbed "/proc/${pid:-none}/cmdline" && kill -KILL "$pid" 2>/dev/null || true
  await is_dead || die "$name would not die (processes $pid $init)"
  rm -f "$host/pid" "$host/init"
}

is_dead() {
  ! is_alive "$pid" && ! is_alive "$init"
}

lose_packets() {
  case $1 in '' | *[!0-9]*) die "'$1' is not a percentage" ;; esac
  rules="table inet lossy
    delete table inet lossy"
  [ "$1" -eq 0 ] || rules="$rules
    table inet lossy {
      chain in { type filter hook input priority 0; iifname eth0 numgen random mod 100 < $1 drop; }
      chain out { type filter hook output priority 0; oifname eth0 numgen random mod 100 < $1 drop; }
    }"
  echo "$rules" | nsenter --net="/run/netns/$ns" nft -f -
}

# A host without power has no cable to mend. Neighbours that gave the address up look for it again at once.
mend() {
  [ -e "/sys/class/net/$link" ] || return 0
  ip link set "$link" up
  ip neighbour flush dev "$bridge"
}

execute() {
  init=$(read_pid init) line=$1
  is_alive "$init" || die "$name is off"
  if [ "$kind" = loopback ]; then set --; else set -- --uts --ipc --net; fi
  exec nsenter --target "$init" --mount --pid "$@" env -i PATH=$host_path HOME=/root /bin/sh -c "$line"
}

# Runs $1 for every host at the same time; one failure fails all.
each_host() {
  jobs='' failed=''
  for i in $(seq "$count"); do
    (choose_host "$i" && "$1") &
    jobs="$jobs $!"
  done
  for job in $jobs; do wait "$job" || failed=1; done
  [ -z "$failed" ]
}

make_host() {
  furnish
  power_on
}

write_known_hosts() {
  for i in $(seq "$1"); do
    if [ "$kind" = hosts ]; then
      echo "$net.$((10 + i)) $(cut -d' ' -f1,2 "$dir/web$i/etc/ssh/testbed_key.pub")"
    else
      echo "[127.0.1.$i]:$port $(cut -d' ' -f1,2 "$dir/web1/etc/ssh/testbed_key.pub")"
    fi
  done >"$dir/known_hosts"
}

# From here on a failure takes back what was made.
begin() {
  [ "$(id -u)" = 0 ] || die "root is needed to make namespaces"
  case $1 in '' | 0* | *[!0-9]*) die "'$1' is not a number of hosts" ;; esac
  [ "$1" -le 200 ] || die "a bed has at most 200 hosts, not $1"
  [ ! -e "$dir/bed" ] || die "$dir holds a test bed already; remove it with: testbed.sh down $dir"
  mkdir -p "$dir"
  [ -z "$(ls -A "$dir")" ] || die "$dir is not empty"
  bridge=none net=127.0.1 group=none
  save_bed
  # shellcheck disable=SC2154 # it is assigned
  trap 'status=$?; trap - EXIT; [ $status -eq 0 ] || take_back; exit $status' EXIT
  trap 'exit 130' INT TERM HUP
  ssh-keygen -q -t ed25519 -N '' -C testbed -f "$dir/id_ed25519"
}

# Nothing is removed while a job still builds. Whoever is impatient does not get a cleaner machine.
take_back() {
  trap '' INT TERM HUP
  for job in $jobs; do wait "$job" || true; done
  remove_bed
}

up() {
  kind=hosts count=$1 port=22
  begin "$1"
  make_bridge
  each_host make_host
  write_known_hosts "$1"
}

loopback() {
  kind=loopback count=1 port=$2
  begin "$1"
  choose_host 1
  make_host
  write_known_hosts "$1"
}

# Deleting the group of links is one wait in the kernel, not one a link. Without the note nothing is touched.
remove_bed() {
  if [ -f "$dir/bed" ]; then
    . "$dir/bed"
    [ "$group" = none ] || ip link delete group "$group" 2>/dev/null || true
    each_host power_off || die "the test bed in $dir is not wholly gone"
    rm -rf "$dir"/web[0-9]* "$dir/id_ed25519" "$dir/id_ed25519.pub" "$dir/known_hosts" "$dir/trouble" "$dir/bed"
  fi
  [ ! -d "$dir" ] || rmdir "$dir" 2>/dev/null || true
}

[ $# -ge 2 ] || die "a command and a directory are needed; the head of $self lists the commands"
command=$1
case $command in
  inside)
    inside "$2" "$3" "$4"
    exit
    ;;
  up | loopback | down) dir=$(readlink -m "$2") ;;
  off | on | cut | mend | lossy | exec | address)
    dir=$(readlink -m "$2")
    load_bed
    choose_host "${3:-}"
    ;;
  *) die "'$command' is none of up, loopback, off, on, cut, mend, lossy, exec, address, down" ;;
esac
case $command in
  cut | mend | lossy) [ "$kind" = hosts ] || die "a loopback bed has no cables" ;;
esac
case $command in
  up) up "${3:-1}" ;;
  loopback) loopback "${3:-1}" "$4" ;;
  off) power_off ;;
  on) power_on ;;
  cut) ip link set "$link" down ;;
  mend) mend ;;
  lossy) lose_packets "${4:-}" ;;
  exec) execute "${4:-}" ;;
  address) if [ "$kind" = hosts ]; then echo "$net.$((10 + n))"; else echo "$net.$n"; fi ;;
  down) remove_bed ;;
esac
