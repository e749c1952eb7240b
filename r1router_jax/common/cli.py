"""How every command starts, and how it ends.

  if __name__ == "__main__":
    commands.run(main)

What the person at the keyboard can put right is one line and exit code 2: an
unknown flag or config key, a word too many, a path that is not there, and every
ValueError, ImportError or ConnectionError that this package raises itself.
Anything else is a fault of ours, with its traceback and exit code 1.
`--verbosity=1` shows every traceback.
"""

import difflib
import glob
import logging as std_logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

USAGE = 2  # Exit code of a command that was asked for what it cannot do.

INTERRUPTED = 130

PREEMPTED = 42  # What was done is saved: start the command again.


_COMPILED = os.path.join(
  os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
  "r1router_jax",
)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_PATH_ERRORS = (
  FileNotFoundError,
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)

_OVERRIDE = re.compile(r"--?(?:no)?(?P<flag>\w+)\.(?P<key>[^=\[]+)")


flags.disclaim_key_flags()  # What `options` defines is the command's.


class Preempted(Exception):
  """This machine is wanted back; says what was saved."""


def keep_programs() -> None:
  """Keeps what XLA compiles for the next run of any command."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", _COMPILED)
    # Many small programs take as long as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _is_for_the_log(record: std_logging.LogRecord) -> bool:
  """Whether to show a log line: all of ours, warnings of the libraries."""
  ours = record.pathname.startswith(_PACKAGE)
  return ours or record.levelno >= std_logging.WARNING


def run(main: Callable[[list[str]], object]) -> None:
  """Parses the flags and calls `main(argv)`, as `absl.app.run`; then exits."""

  def guarded(argv: list[str]) -> object:
    try:
      if len(argv) > 1:
        raise app.UsageError(
          f"What is {argv[1]!r}?  Every argument is a flag, --name=value; "
          "see --help."
        )
      if not logging.level_debug():  # It lists every backend not there.
        std_logging.getLogger("jax._src.xla_bridge").setLevel("WARNING")
        logging.get_absl_handler().addFilter(_is_for_the_log)
      keep_programs()
      return main(argv)
    except KeyboardInterrupt:
      _leave(INTERRUPTED, "Interrupted.")
    except Preempted as error:
      _leave(PREEMPTED, str(error))
    except Exception as error:
      if flags.FLAGS.pdb_post_mortem:
        raise
      ours = not _is_for_the_user(error)
      if ours or logging.level_debug():
        traceback.print_exc()
      _leave(1 if ours else USAGE, "" if ours else f"ERROR: {error}")

  jax.config.config_with_absl()  # Adds the --jax_... flags.
  app.run(guarded, flags_parser=_parse)


def _is_for_the_user(error: Exception) -> bool:
  """Whether `error` tells the user what to change."""
  if isinstance(error, (app.UsageError, *_PATH_ERRORS)):
    return True
  # Said by us: the innermost line is a `raise` of this package, and not one of
  # a library that we called wrongly.
  where = traceback.extract_tb(error.__traceback__)[-1]
  return (
    isinstance(error, (ValueError, ImportError, ConnectionError))
    and os.path.abspath(where.filename).startswith(_PACKAGE + os.sep)
    and (where.line or "").startswith("raise ")
  )


def _leave(code: int, message: str = "") -> NoReturn:
  """Ends this process, with `message` on one line."""
  if message:
    message = "".join(c if c.isprintable() else " " for c in message)
    print(" ".join(message.split()), file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.distributed.is_initialized():
    # The others wait for us in a collective.  They end at once if we do not
    # say goodbye, and after minutes if we do.
    os._exit(code)
  sys.exit(code)


def _parse(args: list[str]) -> list[str]:
  """`flags.FLAGS(args)`, with errors that fit on a line."""
  try:
    for flag, path, _ in _configs(args):
      if not os.path.exists(path):
        near = difflib.get_close_matches(
          path, glob.glob(os.path.join(os.path.dirname(path), "*.py")), 1
        )
        raise flags.Error(
          f"--{flag}: there is no file {path}.{_did_you_mean(near)}"
        )
    return flags.FLAGS(args)
  except SystemExit:  # --help and its like, which are no failure.
    sys.exit(0)
  except flags.Error as error:
    # A ValueError of the config file comes with its traceback inside.
    first, *_, last = str(error).strip().splitlines() * 2
    message = first if first == last else f"{first} {last}"
  except (AttributeError, KeyError):
    message = _unknown_key(args)
    if not message:
      raise
  _leave(USAGE, f"ERROR: {message}")


def _configs(args: list[str]) -> Iterator[tuple[str, str, str]]:
  """(flag, path, path:variant) of each config file named in `args`."""
  for arg, following in zip(args, [*args[1:], ""], strict=True):
    match = re.fullmatch(r"--?(\w+)(?:=(.*))?", arg)
    if (
      match
      and match[1] in flags.FLAGS
      and config_flags.is_config_flag(flags.FLAGS[match[1]])
    ):
      spec = following if match[2] is None else match[2]
      yield match[1], spec.split(":")[0], spec


def options(known: config_dict.ConfigDict, about: str) -> flags.FlagHolder:
  """The flag --config of a command that needs no config file."""
  try:
    return config_flags.DEFINE_config_dict("config", known, about)
  except AttributeError:  # It looks at the command line already.
    _leave(
      USAGE, "ERROR: " + _unknown_in("config", "this command", known, sys.argv)
    )


def _unknown_key(args: list[str]) -> str:
  """Names the first `--config.key` that its file does not have, or ""."""
  for flag, path, spec in _configs(args):
    if found := _unknown_in(
      flag, path, flags.FLAGS[flag].parser.parse(spec), args
    ):
      return found
  return ""


def _unknown_in(flag: str, where: str, config: Mapping, args: list[str]) -> str:
  keys = list(_keys(config))
  for match in filter(None, map(_OVERRIDE.match, args)):
    if match["flag"] == flag and match["key"] not in keys:
      word = match["key"].split(".")[-1]
      near = difflib.get_close_matches(match["key"], keys, 1) or [
        key for key in keys if key.split(".")[-1] == word
      ]
      return (
        f"--{flag}.{match['key']}: {where} has no such key."
        f"{_did_you_mean([f'--{flag}.{key}' for key in near])}"
      )
  return ""


def _keys(config: Mapping, prefix: str = "") -> Iterator[str]:
  """The keys of nested mappings, dotted."""
  for key, value in config.items():
    yield prefix + key
    if hasattr(value, "items"):
      yield from _keys(value, f"{prefix}{key}.")


def _did_you_mean(near: list[str]) -> str:
  return f"  Did you mean {near[0]}?" if near else ""
