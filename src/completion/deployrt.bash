# deployrt.bash -- Completion for bash. It asks the command itself what there is, by `deployrt help`.

# The help of a command or of a strategy, or the overview.
_deployrt_help() {
  "${program/#\~/$HOME}" help "$@" 2>/dev/null </dev/null
}

_deployrt_commands() {
  sed -n 's/^deployrt \([a-z_]\{1,\}\).*/\1/p' <<<"$overview"
}

# Built-in strategies, those of the project by name, and scripts by path.
_deployrt_strategies() {
  local file
  sed -n 's/^deployrt STRATEGY .*deploy: \(.*\), or .*/\1/p' <<<"$overview" | tr -d ' ' | tr ',' '\n'
  for file in strategies/*.lua; do
    file=${file##*/}
    [[ -f strategies/$file ]] && echo "${file%.lua}"
  done
}

# What an option takes, in the word that help has for it; nothing when it takes nothing.
_deployrt_takes() {
  local line
  while IFS= read -r line; do
    [[ $line == "  $1 "* ]] || continue
    read -r _ line _ <<<"$line"
    [[ $line =~ ^[A-Z][A-Z=]*$ ]] && echo "$line"
  done <<<"$overview"
}

# The lines of a list that begin with what is typed. `compgen -W` would expand names of files as shell text.
_deployrt_offer() {
  local line
  while IFS= read -r line; do
    [[ -n $line && $line == "$cur"* ]] && COMPREPLY+=("$line")
  done <<<"$1"
}

# Directories, and files whose name ends as the pattern says; without a pattern only directories.
_deployrt_files() {
  compopt -o filenames 2>/dev/null
  mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(
    compgen -d -- "$cur"
    [[ -z $1 ]] || compgen -f -- "$cur" | while IFS= read -r file; do
      # shellcheck disable=SC2254 # the pattern is meant as one
      case $file in $1) [[ -d ${file/#\~/$HOME} ]] || printf '%s\n' "$file" ;; esac
    done)
}

# The keys of app.yml that the strategy on the line has.
_deployrt_keys() {
  _deployrt_help "$strategy" | sed -n 's/^  \([[:alpha:]_][[:alnum:]_-]*\) .*/strategy.\1=/p'
}

# One of the words that stand for operands and values in help: STRATEGY, APP.yml, DIR, ...
_deployrt_kind() {
  local kind
  for kind in ${1//|/ }; do
    case $kind in
      STRATEGY) _deployrt_offer "$(_deployrt_strategies)"; _deployrt_files '*.lua' ;;
      COMMAND) _deployrt_offer "$(_deployrt_commands)" ;;
      APP.yml) _deployrt_files '*.y*ml' ;;
      DIR) _deployrt_files '' ;;
      F | FILE) _deployrt_files '*' ;;
      KEY=VALUE)
        compopt -o nospace 2>/dev/null
        [[ -z $strategy ]] || _deployrt_offer "$(_deployrt_keys)" ;;
      [a-z]*) _deployrt_offer "$kind" ;;
    esac
  done
}

# The operands of a command, as the first line of its help has them, without options.
_deployrt_usage() {
  _deployrt_help "$1" | sed -E '1!d; s/^deployrt \w+//; s/ -- .*//; s/\[?--?[a-z]+ [A-Z]+\]?//g; s/[][]//g'
}

# The words up to the cursor. Readline makes three words of --state=DIR; here it is one again.
_deployrt_words() {
  local i joining=""
  words=()
  for ((i = 1; i <= COMP_CWORD; i++)); do
    if ((${#words[@]})) && [[ $joining || ${COMP_WORDS[i]} == "=" ]]; then
      words[-1]+=${COMP_WORDS[i]}
      [[ ${COMP_WORDS[i]} == "=" ]] && joining=1 || joining=""
    else
      words+=("${COMP_WORDS[i]}")
    fi
  done
}

# Finds the operands among the words before the cursor; `taken` is what the option just before it takes.
_deployrt_sort() {
  local word
  for word in "${words[@]:0:${#words[@]}-1}"; do
    if [[ $taken ]]; then
      taken=""
    elif [[ $word == -- ]]; then
      rest=1
    elif [[ $word == -o ]]; then
      taken=FILE
    elif [[ $word == -* ]]; then
      taken=$(_deployrt_takes "$word")
    else
      operands+=("$word")
    fi
  done
}

_deployrt() {
  local program=$1 overview cur taken="" rest="" command=run strategy=""
  local -a words operands=() usage
  COMPREPLY=()
  overview=$(_deployrt_help)
  _deployrt_words
  _deployrt_sort
  cur=${words[-1]}
  if [[ ${operands[0]} ]] && grep -qx -e "${operands[0]}" <<<"$(_deployrt_commands)"; then
    command=${operands[0]}
    operands=("${operands[@]:1}")
    read -ra usage <<<"$(_deployrt_usage "$command")"
  else
    usage=("COMMAND|STRATEGY" APP.yml)
  fi
  [[ $command == run ]] && strategy=${operands[0]}
  if [[ -z $taken && $cur == -*=* ]]; then
    taken=$(_deployrt_takes "${cur%%=*}")
    cur=${cur#*=}
    [[ $taken ]] || return
  fi
  if [[ $rest ]]; then
    mapfile -t COMPREPLY < <(compgen -c -- "$cur")
  elif [[ $taken ]]; then
    _deployrt_kind "$taken"
  elif [[ $cur == -* ]]; then
    _deployrt_offer "$(_deployrt_help "$command" | sed -n 's/^  \(--[a-z-]*\).*/\1/p')"
  else
    _deployrt_kind "${usage[${#operands[@]}]}"
  fi
}

complete -F _deployrt deployrt
