# shellcheck shell=sh disable=SC3043,SC2154,SC2034
# adopt.sh -- Services that were started by hand: found by their port, taken over as they run. Sent after host.sh, to the
# hosts that have one. instances/<port>.origin is a script that becomes the same program again.

stranger_pids() { # port -- who holds its listening sockets, without those that another of them has forked
  sockets=$(awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port { print "socket:[" $10 "]" }' \
    /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  [ "$sockets" ] || return 0
  holders=" $(ls -l /proc/[0-9]*/fd 2>/dev/null | sockets=$sockets awk '
    BEGIN { split(ENVIRON["sockets"], list, "\n"); for (i in list) wanted[list[i]] = 1 }
    /^\/proc\// { split($0, part, "/"); pid = part[3] }
    ($NF in wanted) && !seen[pid]++ { print pid }' | tr '\n' ' ')"
  for holder in $holders; do
    process_stat "$holder" || continue
    case $holders in *" $s_parent "*) ;; *) printf '%s\n' "$holder" ;; esac
  done
}

stranger_unit() { # pid -- the unit of systemd that would start it again
  if [ "$1" = 1 ]; then
    echo "one of its sockets"
    return
  fi
  unit=$(sed -n 's,^.*/\([^/]*[.]service\)$,\1,p' "/proc/$1/cgroup" 2>/dev/null | head -n 1)
  [ -z "$unit" ] || [ "$(systemctl show -p MainPID --value "$unit" 2>/dev/null)" != "$1" ] || echo "$unit"
}

stranger_show() { # port -- pid start boot user obstacle command; nothing when nobody listens
  owner=$(port_owner "$1")
  [ "$owner" ] || return 0
  stranger=$(stranger_pids "$1")
  case $stranger in
    '') fail stranger "$owner, and $(id -un) cannot see which: deploy as that user, or as root"; return 1 ;;
    *[!0-9]*) fail stranger "port $1 is shared by several processes, pids $(echo $stranger): stop all but one"; return 1 ;;
  esac
  unit=$(stranger_unit "$stranger")
  [ -z "$unit" ] || {
    fail stranger "$owner, and systemd ($unit) would start it again: disable that, and start the service by hand once"
    return 1
  }
  process_stat "$stranger" || return 0
  user=$(awk '/^Uid:/ { print $2 }' "/proc/$stranger/status")
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$stranger" "$s_start" "$boot" "$(id -un "$user" 2>/dev/null || echo "$user")" \
    "$(origin_obstacle "$stranger" "$user")" "$(tr '\0\1-\37' ' ' < "/proc/$stranger/cmdline")"
}

same_file() { # path path
  [ "$(stat -L -c %d:%i "$1")" = "$(stat -L -c %d:%i "$2")" ]
}

origin_program() { # /proc/<pid> -- whether its first word, looked up as it would have, is what it runs
  (
    cd "$1/cwd" || exit 1
    first=$(tr '\0\n' '\n\1' < "$1/cmdline" | sed 1q)
    PATH=$(tr '\0\n' '\n\1' < "$1/environ" | sed -n 's/^PATH=//p') program=$(command -v "$first")
    [ "$program" ] && same_file "$program" "$1/exe"
  ) 2>/dev/null
}

origin_obstacle() { # pid uid -- why the same could not be started again; nothing when it could
  origin=/proc/$1
  if [ "$2" != "$(id -u)" ]; then
    echo "it runs as another user"
  elif ! [ -r "$origin/environ" ] || ! [ -d "$(readlink "$origin/cwd")" ]; then
    echo "its environment or its directory is not to be had"
  elif tr '\0\n' '\n\1' < "$origin/environ" | grep -qv '^[^=]*=' || [ "$(tr -dc '\1' < "$origin/environ")" ]; then
    echo "it has overwritten its environment"
  elif ! origin_program "$origin"; then
    echo "its command line does not lead to the program that it runs"
  fi
}

quote_words() { # -- words that end with NUL, each quoted and on a line; a line break within one is a byte 1
  tr '\0\n' '\n\1' | LC_ALL=C sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/"
}

origin_text() { # pid -- the script; what a shell can export is never an argument
  name="'[A-Za-z_][A-Za-z0-9_]*="
  {
    sed -n 's/^Umask:/umask/p' "/proc/$1/status"
    printf 'cd %s || exit 1\nunset PWD OLDPWD SHLVL _\n' "$(printf '%s\0' "$(readlink "/proc/$1/cwd")" | quote_words)"
    quote_words < "/proc/$1/environ" | sed -n "s/^$name/export &/p"
    printf 'exec'
    quote_words < "/proc/$1/environ" | sed -n "/^$name/!p" | sed '1s/^/ env /; 2,$s/^/ /' | tr -d '\n'
    quote_words < "/proc/$1/cmdline" | sed 's/^/ /' | tr -d '\n'
    echo
  } | tr '\1' '\n'
}

process_adopt() { # port pid start boot key record origin -- who holds the port becomes an instance; origin: can start again
  layout || return 1
  process_read "$1" && [ "$i_key" = "$5" ] && return 0
  if ! process_alive "$2" "$3" "$4" || [ "$(stranger_pids "$1")" != "$2" ]; then
    fail moved "port $1 is not held by pid $2 any more: somebody changed it meanwhile"
    return 1
  fi
  record=$root/instances/$1
  offset=$(wc -c 2>/dev/null < "$root/logs/$1.log") || offset=0
  rm -f "$record.origin"
  { [ -z "$7" ] || { origin_text "$2" > "$record.origin.part" && mv "$record.origin.part" "$record.origin"; }; } &&
    printf '%s\t%s\t%s\t%s\t%s\n%s\n' "$5" "$2" "$3" "$4" "$offset" "$6" > "$record.part" && mv "$record.part" "$record" ||
    fail system "cannot write below $root"
}

process_disown() { # port pid -- it runs on as a stranger
  process_read "$1" && [ "$i_pid" != "$2" ] && return 0
  rm -f "$root/instances/$1" "$root/instances/$1.origin"
}

origins_forget() { # -- what was adopted is not to be started again
  rm -f "$root"/instances/*.origin
}
