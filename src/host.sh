# shellcheck shell=sh disable=SC3043,SC2088,SC2034
# host.sh -- What deployrt does on a host, in POSIX shell. Each shell that it opens there reads this first. A function
# prints its answer and returns 0, or prints "code: message" and returns 1. Fields of an answer are split by tabs.
{ read -r _ && read -r of login_umask; } < /proc/self/status # for what is the user's; $(umask) is a process more
[ "$of" = Umask: ] || login_umask=$(umask) # of Linux before 4.7
umask 077

deployrt_root() { # directory -- where the application lives; a relative one is below HOME
  case $1 in
    /*) root=$1 ;;
    '~/'*) root=$HOME/${1#??} ;;
    *) root=$HOME/$1 ;;
  esac
  tab=$(printf '\t')
  { read -r boot < /proc/sys/kernel/random/boot_id; } 2>/dev/null || boot=unknown
}

fail() { # code message
  printf '%s: %s\n' "$1" "$2"
  return 1
}

room_at() { # directory -- sets room to the KB that are free there, or to nothing where that cannot be told
  room=$(df -Pk "$1" 2>/dev/null | { read -r _; read -r _ _ _ room _; echo "$room"; })
}

unwritten() { # path message code -- says why a file was not written; a shell does not tell that a disk is full
  room_at "${1%/*}"
  [ "${room:-99}" -ge 16 ] || set -- "$1" "No space left on device; make room there" full
  fail "${3:-system}" "cannot write $1: ${2##*: }"
}

facts() { # -- root, home, boot id, user, what tells machines of one boot apart, and the run that held the lock last
  { read -r mount _ < /proc/self/mountinfo && read -r node < /proc/sys/kernel/hostname; } 2>/dev/null || node=
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$root" "$HOME" "$boot" "$(id -un)" "${node:+$mount $node}" "$(lock_last)"
}

layout() { # -- makes the directories of the application
  [ -d "$root/runs" ] && return 0
  message=$(mkdir -p "$root/releases" "$root/shared" "$root/instances" "$root/logs" "$root/runs" 2>&1) ||
    fail system "$message"
}

# --- files

file_write() { # path mode text -- aside, then renamed
  message=$({ { [ -d "${1%/*}" ] || mkdir -p "${1%/*}"; } && umask 077 && printf '%s' "$3" > "$1.part.$$" &&
    { [ "$2" = 600 ] || chmod "$2" "$1.part.$$"; } && mv -f "$1.part.$$" "$1"; } 2>&1) && return 0
  unwritten "$1" "$message" || rm -f "$1.part.$$"
  return 1
}

file_read() { # path
  [ -e "$1" ] || { fail missing "$1: no such file"; return 1; }
  cat "$1"
}

# --- the lock: one line, made by link(2) so that it is there whole or not at all. A later epoch of the same run takes it over.

# The first of its epoch gets it, if there was no later one. Prints the run that held it before; text begins the copy of the
# journal. What starts need when the disk is full is kept aside; a later life goes on without, where there is no room.
lock_take() { # run epoch owner since life text
  layout && mkdir -p "$root/runs/$1" || return 1
  for e in "$root/runs/$1"/epoch.*; do
    [ "$e" = "$root/runs/$1/epoch.*" ] || [ "${e##*.}" -le "$2" ] || { superseded "$1"; return 1; }
  done
  mine=$root/.lock.$$ note=$1$tab$2$tab$3$tab$4$tab$5
  message=$({ printf '%s\n' "$note" > "$mine" && printf '%s%65536s' "$6" '' > "$root/.reserve"; } 2>&1) ||
    { [ "$2" -gt 1 ] && rm -f "$root/.reserve" && printf '%s\n' "$note" > "$mine"; } 2>/dev/null ||
    { unwritten "$root/lock" "$message"; rm -f "$mine"; return 1; }
  lock_get "$1" "$2" "$5" || { lock_read || fail system "cannot make $root/lock"; rm -f "$mine"; return 1; }
  rm -f "$mine" "$root/runs/$1/control"
  [ "$2" -eq 1 ] || [ -e "$root/runs/$1/epoch.$2" ] || : > "$root/runs/$1/epoch.$2"
  [ -z "$6" ] || message=$({ printf '%s' "$6" >> "$root/runs/$1/journal"; } 2>&1) ||
    { unwritten "$root/runs/$1/journal" "$message"; return 1; }
  lock_last
}

lock_get() { # run epoch life -- when it is free, got already, or of an earlier epoch
  ln "$mine" "$root/lock" 2>/dev/null && return 0
  lock_held_by "$1" || return 1
  [ "$holder_epoch" != "$2" ] || [ "$holder_life" != "$3" ] || return 0
  [ "$2" -gt "$holder_epoch" ] && ln "$mine" "$root/runs/$1/epoch.$2" 2>/dev/null && mv -f "$mine" "$root/lock"
}

lock_last() { # -- the run that held it last
  last=''
  [ ! -e "$root/last" ] || read -r last < "$root/last"
  printf '%s' "$last"
}

lock_held_by() { # run, and epoch where it matters
  { IFS=$tab read -r holder holder_epoch holder_owner holder_since holder_life < "$root/lock"; } 2>/dev/null &&
    [ "$holder" = "$1" ] && [ "${2:-$holder_epoch}" = "$holder_epoch" ]
}

lock_read() { # -- locked: run epoch owner since life, beat, now, step; fails when nobody holds it
  { IFS= read -r lock_text < "$root/lock" && lock_beaten=$(stat -c %Y "$root/lock"); } 2>/dev/null || return 1
  lock_step=''
  lock_held_by "" || { IFS= read -r lock_step < "$root/runs/$holder/step"; } 2>/dev/null
  printf 'locked: %s\t%s\t%s\t%s\n' "$lock_text" "$lock_beaten" "$(date +%s)" "$lock_step"
}

lock_beat() { # run epoch, and step if it may be another -- a sign of life; answers all that was asked of the run, a line each
  lock_held_by "$1" "$2" || { superseded "$1"; return 1; }
  touch "$root/lock"
  beat=$root/runs/$1/step # whole at any time for who reads the lock, and written only where it is another
  { [ $# -lt 3 ] || { IFS= read -r beaten < "$beat" && [ "$beaten" = "$3" ]; } || { printf '%s\n' "$3" > "$beat.part" && mv -f "$beat.part" "$beat"; }; } 2>/dev/null
  [ ! -e "$root/runs/$1/control" ] || cat "$root/runs/$1/control" 2>/dev/null || :
}

superseded() { # run
  fail superseded "run $1 does not hold the lock of $root any more: another controller took it over, or it was unlocked"
}

# What the controller of a run asks. Only the one that holds the lock is heard. The text goes to the copy of its journal; where
# it does not, the function is called all the same, and 64 is added to its status.
as() { # run epoch text function argument...
  lock_held_by "$1" "$2" || { superseded "$1"; return 1; }
  uncopied=0
  [ -z "$3" ] || copy_append "$1" "$3" || uncopied=64
  shift 3
  "$@"
  return $(($? + uncopied))
}

# A text that begins with an end of line is a second attempt, behind what may be torn. What room there is then, starts need more.
copy_append() { # run text
  case $2 in "
"*) room_at "$root/runs/$1" && [ "${room:-999}" -ge 256 ] || return 1 ;; esac
  { printf '%s' "$2" >> "$root/runs/$1/journal"; } 2>/dev/null
}

with() { # text function argument... -- of a library that few hosts ever need
  eval "$1"
  shift
  "$@"
}

# Of old runs only the last ones are kept, and of what was run for them how it ended.
lock_release() { # run, and epoch unless it is dead
  lock_held_by "$1" "${2:-}" || return 0
  [ -z "${2:-}" ] || rm -f "$root/runs/$1"/op*/in "$root/runs/$1"/op*/out "$root/runs/$1"/op*/err
  { printf '%s\n' "$1" > "$root/last"; } 2>/dev/null
  rm -f "$root/lock"
  set -- "$root"/runs/*
  while [ $# -gt 10 ]; do
    rm -rf "$1"
    shift
  done
}

# Asks something of a run: its controller reads it with its next sign of life, behind what was asked before. Where the disk is
# full, a part of what is kept aside is given up for it.
run_control() { # run line
  message=$({ printf '%s\n' "$2" >> "$root/runs/$1/control"; } 2>&1) && return 0
  [ ! -s "$root/.reserve" ] || dd if=/dev/null of="$root/.reserve" bs=1024 seek=48 2>/dev/null
  { printf '\n%s\n' "$2" >> "$root/runs/$1/control"; } 2>/dev/null || unwritten "$root/runs/$1/control" "$message"
}

run_journal() { # run -- the copy of its journal
  cat "$root/runs/$1/journal" 2>/dev/null || :
}

runs_ended() { # -- the last record of each run's journal
  for r in "$root"/runs/*/journal; do
    [ ! -e "$r" ] || tail -n 1 "$r"
  done
}

# --- releases: a directory that is complete, or absent; beside it its SHA-256 and the boot in which it was unpacked

# When it came is told by what was written then: the directory has the time that the archive gives it.
release_list() { # -- version sha256 time of each
  set --
  for r in "$root"/releases/*/; do
    r=${r%/}
    r=${r##*/}
    ! release_complete "$r" || set -- "$@" "$root/releases/.$r.sha256"
  done
  [ $# -gt 0 ] || return 0
  stat -c '%Y %n' "$@" 2>/dev/null | while read -r time r; do
    r=${r##*/.}
    r=${r%.sha256}
    ! release_complete "$r" || printf '%s\t%s\t%s\n' "$r" "$release_sum" "$time"
  done
}

# Unpacked in this boot, or known to have reached the disk: a power failure may leave empty files behind.
release_complete() { # version
  [ -d "$root/releases/$1" ] || return 1
  { IFS=$tab read -r release_sum release_boot < "$root/releases/.$1.sha256"; } 2>/dev/null || return 1
  [ "$release_boot" = "$boot" ] || [ "$release_boot" = synced ]
}

checksum() { # -- of standard input; openssl knows the processor's own instructions, which makes it four times as fast
  if command -v openssl > /dev/null; then openssl dgst -sha256 -r; else sha256sum; fi
}

# What arrives is first written down: a reader that keeps up, and no copies through pipes, cost less than half of a
# checksum on the way.
release_receive() { # version sha256 filter -- the archive on standard input
  layout || return 1
  part=$root/releases/.part.$1
  [ ! -e "$part" ] || rm -rf "$part" "$part".*
  problem=$({ mkdir "$part" && cat > "$part.archive"; } 2>&1) || { release_refuse "$part" unpack "$problem"; return 1; }
  checksum < "$part.archive" > "$part.sum" 2>/dev/null &
  summing=$!
  problem=$({
    if [ "$3" ]; then $3 < "$part.archive" | tar -xopf - -C "$part"; else tar -xopf "$part.archive" -C "$part"; fi
  } 2>&1)
  unpacked=$?
  wait $summing
  read -r sum _ < "$part.sum"
  if [ "$sum" != "$2" ]; then
    release_refuse "$part" checksum "what arrived has the SHA-256 $sum, not $2"
  elif [ $unpacked -ne 0 ] || [ -n "$problem" ]; then
    release_refuse "$part" unpack "$problem"
  else
    rm -f "$part".*
    release_settle "$1" "$2" "$part"
  fi
}

release_refuse() { # directory code message -- leaves nothing of it
  rm -rf "$1" "$1".*
  fail "$2" "$(printf '%s\n' "$3" | tail -n 3 | sed -e ':next' -e '$!N' -e 's/\n/; /' -e 't next')"
}

release_settle() { # version sha256 directory
  [ ! -e "$root/releases/$1" ] || rm -rf "$root/releases/$1"
  printf '%s\t%s\n' "$2" "$boot" > "$root/releases/.$1.sha256" &&
    chmod 700 "$3" && mv "$3" "$root/releases/$1" || { unwritten "$root/releases/$1" "cannot rename $3"; return 1; }
  (setsid sh -c 'sync -f "$1" && printf "%s\tsynced\n" "$2" > "$1/../.$3.new" &&
    mv "$1/../.$3.new" "$1/../.$3.sha256"' sh "$root/releases/$1" "$2" "$1" < /dev/null > /dev/null 2>&1 &)
}

release_remove() { # version -- unless one of its processes runs still, whose directory that is
  for r in "$root"/instances/*; do
    case ${r##*/} in *[!0-9]* | '') continue ;; esac
    process_read "${r##*/}" || continue
    case $i_record in *"\"release\":\"$1\""*) ;; *) continue ;; esac
    process_alive "$i_pid" "$i_start" "$i_boot" || continue
    fail busy "release $1 still runs in slot ${r##*/}, pid $i_pid"
    return 1
  done
  rm -rf "$root/releases/.gone.$1"
  [ -d "$root/releases/$1" ] && mv "$root/releases/$1" "$root/releases/.gone.$1"
  rm -rf "$root/releases/.$1.sha256" "$root/releases/.gone.$1"
}

current_get() {
  link=$(readlink "$root/current") || return 0
  printf '%s' "${link##*/}"
}

current_set() { # version, or "" for none
  [ "$1" ] || { rm -f "$root/current"; return 0; }
  [ "$(readlink "$root/current")" != "releases/$1" ] || return 0
  rm -f "$root/.current"
  message=$({ ln -s "releases/$1" "$root/.current" && mv -T "$root/.current" "$root/current"; } 2>&1) ||
    fail system "cannot switch $root/current to $1: $message"
}

# --- processes: instances/<port> holds "key pid start boot log-offset" and, in a second line, what was started

process_read() { # port -- sets i_key i_pid i_start i_boot i_offset i_record
  i_key='' i_pid=0 i_start=0 i_boot='' i_offset=0 i_record=''
  [ -e "$root/instances/$1" ] || return 1
  { IFS=$tab read -r i_key i_pid i_start i_boot i_offset; IFS= read -r i_record; } < "$root/instances/$1"
}

process_stat() { # pid -- sets s_state s_parent s_start
  { read -r stat < "/proc/$1/stat"; } 2>/dev/null || return 1
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  s_state=$1 s_parent=$2 s_start=${20}
}

# The start time tells a process from a later one with the same pid; a zombie is dead.
process_alive() { # pid start boot
  [ "$3" = "$boot" ] && process_stat "$1" && [ "$s_state" != Z ] && [ "$s_state" != X ] && [ "$s_start" = "$2" ]
}

# A copy of this shell records itself, tells its pid, and becomes the process: each program that it need not run on the
# way is a millisecond less. What it exports may have any name that a shell passes on, so all that is needed afterwards is
# put between the names and the command. It ends its launcher, which would wait for it: what a shell starts with & ignores
# INT and QUIT ever after. Its log stays private.
process_become() { # NAME=value... -- command...
  process_stat self
  start_offset=0
  [ ! -s "$start_log" ] || start_offset=$(wc -c < "$start_log")
  true >> "$start_log" || exit 1
  { start_note 2>/dev/null || { rm -f "$root/.reserve" && start_note; }; } && mv "$record.part" "$record" || exit 1
  cd "$start_directory" || exit 1
  start_passed=
  for start_word do
    shift
    set -- "$@" "$start_word"
    [ "$start_passed$start_word" = -- ] || continue
    start_passed=yes
    set -- "$@" "${stat%% *}" "$start_log" "$s_parent" "$login_umask" "$start_setsid"
  done
  eval "$start_secrets"
  while [ "$1" != -- ]; do
    # shellcheck disable=SC2163 # NAME=value
    export "$1"
    shift
  done
  printf '%s\n' "$2"
  exec >> "$3" 2>&1
  kill -s KILL "$4"
  umask "$5"
  shift 5
  exec "$@"
}

start_note() {
  printf '%s\t%s\t%s\t%s\t%s\n%s\n' "$start_key" "${stat%% *}" "$s_start" "$boot" "$start_offset" "$start_text" > "$record.part"
}

process_start() { # port key directory record secrets NAME=value... -- command... : prints the pid
  layout || return 1
  if process_read "$1" && process_alive "$i_pid" "$i_start" "$i_boot"; then
    [ "$i_key" = "$2" ] && printf '%s\n' "$i_pid" && return 0
    fail busy "slot $1 runs another process of this application, pid $i_pid"
    return 1
  fi
  # This very operation started it already, and it ended: that is an answer too.
  [ "$i_key" = "$2" ] && [ "$i_boot" = "$boot" ] && printf '%s\n' "$i_pid" && return 0
  owner=''
  [ -z "$(port_table "$1")" ] || owner=$(port_owner "$1")
  [ -z "$owner" ] || { fail stranger "$owner"; return 1; }
  [ -d "$3" ] || { fail missing "$3: no such directory"; return 1; }
  record=$root/instances/$1
  start_log=$root/logs/$1.log start_key=$2 start_directory=$3 start_text=$4 start_secrets=$5
  [ "${start_setsid:-}" ] || start_setsid=$(command -v setsid)
  shift 5
  { pid=$({ (process_become "$@") && :; } < /dev/null 2>&1); } 2>/dev/null # where the shell tells of the launcher
  case $pid in
    *"$record"* | *printf*) rm -f "$record.part"; unwritten "$record" "$pid" start ;;
    *"$start_log"*) unwritten "$start_log" "$pid" start ;;
    '' | *[!0-9]*) rm -f "$record.part"; fail start "$pid" ;;
    *) printf '%s\n' "$pid" ;;
  esac
}

process_show() { # port -- port state pid key, and the record
  process_read "$1" || { printf '%s\tnone\t0\t\t\n' "$1"; return 0; }
  state=exited
  if process_alive "$i_pid" "$i_start" "$i_boot"; then
    state=running told=''
    [ ! -e "$root/instances/$1.told" ] || read -r told < "$root/instances/$1.told"
    [ "$told" != "$i_pid $i_start" ] || state=ending
  fi
  printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$state" "$i_pid" "$i_key" "$i_record"
}

process_list() { # -- process_show of each, and the ports that are listened on
  for r in "$root"/instances/*; do
    r=${r##*/}
    case $r in *[!0-9]* | '') continue ;; esac
    process_show "$r"
  done
  printf 'listening'
  port_list
  printf '\norigins'
  for r in "$root"/instances/*.origin; do
    r=${r##*/}
    [ "$r" = '*.origin' ] || printf '\t%s' "${r%.origin}"
  done
  printf '\ncurrent\t%s\n' "$(current_get)"
}

# That it was told to end is noted first: who looks at it later must not take it for one that goes on.
process_signal() { # port pid signal -- to its process group; prints sent or gone
  if process_read "$1" && [ "$i_pid" = "$2" ] && process_alive "$i_pid" "$i_start" "$i_boot"; then
    { printf '%s %s\n' "$i_pid" "$i_start" > "$root/instances/$1.told"; } 2>/dev/null
    kill -s "$3" -- "-$i_pid" 2>/dev/null || kill -s "$3" "$i_pid" 2>/dev/null
    echo sent
  else
    echo gone
  fi
}

process_forget() { # port pid -- what it left of its group goes, and the record; prints running while it does not end
  if process_read "$1" && [ "$i_pid" = "$2" ]; then
    process_alive "$i_pid" "$i_start" "$i_boot" && echo running && return 0
    [ "$i_boot" != "$boot" ] || [ -d "/proc/$2" ] || kill -s KILL -- "-$2" 2>/dev/null
    rm -f "$root/instances/$1" "$root/instances/$1.told"
  fi
  return 0
}

process_log() { # port lines -- the end of what the present process wrote
  process_read "$1"
  tail -c "+$((i_offset + 1))" "$root/logs/$1.log" 2>/dev/null | tail -n "$2"
}

# --- ports

# Sockets that listen come first in these files. Reading goes no further: a busy host has connections by the thousand. Where
# none speaks IPv6, its table is left alone: to find nothing there takes the kernel as long as all the rest.
port_table() { # port, or nothing -- address:port, both hexadecimal, uid and inode of each, or of those on that port
  port_six=/proc/net/tcp6
  { read -r _ _ six < /proc/net/sockstat6; } 2>/dev/null && [ "$six" = 0 ] && port_six=
  # shellcheck disable=SC2086
  awk -v wanted="${1:+$(printf ':%04X' "$1")}" 'BEGIN {
    for (i = 1; i < ARGC; i++)
      while ((getline line < ARGV[i]) > 0 && line !~ / 0[16] /)
        if (split(line, f) > 9 && f[4] == "0A" && f[2] ~ wanted "$") print f[2], f[8], f[10]
  }' /proc/net/tcp $port_six 2>/dev/null
}

port_list() { # -- each listened-on port after a tab
  port_table | { ports=''; while read -r where _; do ports=$ports$tab$((0x${where##*:})); done; printf '%s' "$ports"; }
}

port_owner() { # port -- nothing when it is free; else who listens, as far as we may see
  port_table "$1" | {
    read -r _ uid inode || exit 0
    holder=$(ls -l /proc/[0-9]*/fd 2>/dev/null | awk -v wanted="socket:[$inode]" '
      /^\/proc\// { split($0, part, "/"); pid = part[3] }
      $NF == wanted { print pid; exit }')
    if [ -n "$holder" ]; then
      printf 'port %s is taken by pid %s (%s) of uid %s\n' "$1" "$holder" \
        "$(tr '\0' ' ' < "/proc/$holder/cmdline" | cut -c 1-80)" "$uid"
    else
      printf 'port %s is taken by a process of uid %s\n' "$1" "$uid"
    fi
  }
}

# --- commands that outlive the connection: runs/<key>/ holds pid, out, err and at the end status

supervisor='
cd "$1" || exit 1
directory=$2 login_umask=$3
shift 3
printf "%s\n" $$ > pid.part && mv pid.part pid
out=$PWD/out err=$PWD/err in=$PWD/in marker=$PWD
{
  (
    cd "$directory" || exit 126
    umask "$login_umask" || exit
    while [ "$1" != -- ]; do
      export "$1"
      shift
    done
    shift
    exec "$@"
  ) < "$in" > "$out" 2> "$err"
  status=$?
} 2> "$marker/shell"
signal=
[ $status -gt 128 ] && [ -s "$marker/shell" ] && signal=$((status - 128))
case $status in 130 | 141) signal=$((status - 128)) ;; esac
printf "%s\t%s\n" "$status" "$signal" > "$marker/status.part"
mv "$marker/status.part" "$marker/status"
'

operation_run() { # key directory input NAME=value... -- command... : once, however often it is asked for
  marker=$root/runs/$1
  message=$(mkdir -p "${marker%/*}" 2>&1) || { fail system "$message"; return 1; }
  if problem=$(mkdir "$marker" 2>&1); then
    message=$({ printf '%s' "$3" > "$marker/in" && printf '%s\n' "$boot" > "$marker/boot"; } 2>&1) ||
      { unwritten "$marker/in" "$message"; rm -rf "$marker"; return 1; }
    operation_directory=$2
    shift 3
    { setsid sh -c "$supervisor" deployrt "$marker" "$operation_directory" "$login_umask" "$@" < /dev/null > /dev/null 2>&1
    } 2>/dev/null
  elif [ ! -d "$marker" ]; then
    fail system "$problem"
    return 1
  else
    while [ ! -e "$marker/status" ] && operation_alive "$marker"; do sleep 0.1 2>/dev/null || sleep 1; done
  fi
  [ -e "$marker/status" ] || { fail lost "the command began and left no status: the host went down?"; return 1; }
  printf '%s\t%s\t%s\n' "$(cat "$marker/status")" "$(wc -c < "$marker/out")" "$(wc -c < "$marker/err")"
  cat "$marker/out" "$marker/err"
}

operation_of_this_boot() { # marker -- sets supervisor_pid; the pid may be another's after a boot
  supervisor_boot=''
  { read -r supervisor_boot < "$1/boot"; } 2>/dev/null && [ "$supervisor_boot" = "$boot" ] &&
    { read -r supervisor_pid < "$1/pid"; } 2>/dev/null
}

operation_alive() { # marker -- or begun less than 10 s ago: who began it may be about to write boot and pid
  if operation_of_this_boot "$1"; then
    kill -0 "$supervisor_pid" 2>/dev/null || [ -e "$1/status" ]
  else
    [ "${supervisor_boot:-$boot}" = "$boot" ] && [ $(($(date +%s) - $(stat -c %Y "$1"))) -lt 10 ]
  fi
}

operation_stop() { # key
  operation_of_this_boot "$root/runs/$1" && kill -s TERM -- "-$supervisor_pid" 2>/dev/null
  return 0
}
