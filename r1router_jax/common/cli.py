"""Runs a command: parses its flags, calls `main`, turns errors into exit codes.

  if __name__ == "__main__":
    cli.run(main)

An error that the user can put right is one line on stderr and exit code 2: a
wrong flag, config key, argument or path, a full or read-only disk, and every
`UserError`.  Any other is a bug, with its traceback and exit code 1.
`--verbosity=1` shows all tracebacks.

JAX is not imported here before a command's own code imports it, so that wrong
flags and `--help` are answered at once.
"""

import difflib
import errno
import glob
import logging as std_logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from absl import app, flags, logging

from r1router_jax.common import files
from r1router_jax.common.errors import UserError

USAGE = 2  # Exit code if the user asked for something impossible.
INTERRUPTED = 130  # Exit code after Ctrl-C.
PREEMPTED = 42  # Exit code if all work was saved: start the command again.

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PATH_ERRORS = (FileNotFoundError, FileExistsError, PermissionError)
_PATH_ERRORS += (IsADirectoryError, NotADirectoryError)
_USER_ERRORS = (UserError, app.UsageError, *_PATH_ERRORS)
# Of a disk that is full, read-only, or used up by its owner's share; or of a
# file above the limit of its size.
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
_JAX_FLAG = re.compile(r"--?(no)?jax_|--?helpfull")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=\[]+)")


class Preempted(Exception):
  """The machine is wanted back; the message says what was saved."""


def enable_program_cache() -> None:
  """Keep XLA's compiled programs on disk for the next run of any command."""
  directory = "jax_compilation_cache_dir"
  min_seconds = "jax_persistent_cache_min_compile_time_secs"
  if jax := sys.modules.get("jax"):
    if not getattr(jax.config, directory):
      jax.config.update(directory, files.CACHE_FOLDER)
      # Many small programs take as long to compile as one large one.
      jax.config.update(min_seconds, 0.1)
  elif not os.environ.get(directory.upper()):
    # JAX reads these variables when it is imported.
    os.environ[directory.upper()] = files.CACHE_FOLDER
    os.environ[min_seconds.upper()] = "0.1"


def run(main: Callable[[list[str]], object]) -> None:
  """Parse the flags, call `main(argv)` and exit, like `absl.app.run`."""

  def guarded_main(argv: list[str]) -> object:
    # A terminal that is not UTF-8 shows "?" for what it cannot show.
    sys.stdout.reconfigure(errors="replace")
    try:
      if len(argv) > 1:
        cure = "Every argument is a flag, --name=value; see --help."
        raise app.UsageError(f"What is {argv[1]!r}?  {cure}")
      if not logging.level_debug():
        # At INFO this logger lists every backend that is not installed.
        std_logging.getLogger("jax._src.xla_bridge").setLevel("WARNING")
        logging.get_absl_handler().addFilter(_is_shown)
      enable_program_cache()
      return main(argv)
    except KeyboardInterrupt:
      _exit(INTERRUPTED, "Interrupted.")
    except Preempted as error:
      _exit(PREEMPTED, str(error))
    except Exception as error:
      # absl opens the debugger where the error was raised.
      if flags.FLAGS.pdb_post_mortem:
        raise
      message, expected = f"ERROR: {error}", isinstance(error, _USER_ERRORS)
      if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        message, expected = f"{message}.  Free it, or write elsewhere.", True
      if not expected or logging.level_debug():
        traceback.print_exc()
      _exit(USAGE if expected else 1, message if expected else "")

  # The --jax_... flags need JAX, whose import takes longer than all the rest.
  if any(map(_JAX_FLAG.match, sys.argv[1:])):
    import jax

    jax.config.config_with_absl()
  app.run(guarded_main, flags_parser=_parse_flags)


def _is_shown(record: std_logging.LogRecord) -> bool:
  # Of libraries, only the warnings.
  is_ours = record.pathname.startswith(_PACKAGE)
  return is_ours or record.levelno >= std_logging.WARNING


def _exit(code: int, message: str = "") -> NoReturn:
  """End this process, with `message` on one line of stderr."""
  if message:
    # Line breaks and control characters may come from paths and files.
    message = "".join(c if c.isprintable() else " " for c in message)
    print(" ".join(message.split()), file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  jax = sys.modules.get("jax")
  if jax and jax.distributed.is_initialized():
    # The other processes wait for this one in a collective.  They end at once
    # if it dies, and only after minutes if it says goodbye.
    os._exit(code)
  sys.exit(code)


def _parse_flags(args: list[str]) -> list[str]:
  """Parse like `flags.FLAGS(args)`, with errors that fit on one line."""
  try:
    # config_flags would go on without the file, and fail later.
    path = _config_spec(args).split(":")[0]
    if path and not os.path.exists(path):
      siblings = glob.glob(os.path.join(os.path.dirname(path), "*.py"))
      cure = _did_you_mean(difflib.get_close_matches(path, siblings, 1))
      raise flags.Error(f"--config: there is no file {path}.{cure}")
    # This reads config files, too.
    return flags.FLAGS(args)
  except SystemExit:  # --help and the like, which are no failure.
    sys.exit(0)
  except flags.Error as error:
    # A ValueError of the config file comes with its traceback inside.
    first, *_, last = str(error).strip().splitlines() * 2
    message = first if first == last else f"{first} {last}"
  except (AttributeError, KeyError):
    message = _unknown_config_key(args)
    if not message:
      raise
  _exit(USAGE, f"ERROR: {message}")


def _config_spec(args: list[str]) -> str:
  """Return the value of --config, "path:variant", or "" without such a flag."""
  for arg, following in zip(args, [*args[1:], ""], strict=True):
    name, has_value, value = arg.lstrip("-").partition("=")
    if arg.startswith("-") and name == "config" and name in flags.FLAGS:
      return value if has_value else following
  return ""


def _unknown_config_key(args: list[str]) -> str:
  """Name the first `--config.key` that its file does not have, or return ""."""
  spec = _config_spec(args)
  config = flags.FLAGS["config"].parser.parse(spec) if spec else {}
  keys = list(_dotted_keys(config))
  given = [match[1] for match in map(_OVERRIDE.match, args) if match]
  key = next((key for key in given if key not in keys), "")
  if not key:
    return ""
  # A key that is spelt alike, else one of that name in another section.
  word = key.split(".")[-1]
  others = [other for other in keys if other.split(".")[-1] == word]
  similar = difflib.get_close_matches(key, keys, 1) or others
  cure = _did_you_mean([f"--config.{other}" for other in similar])
  return f"--config.{key}: {spec.split(':')[0]} has no such key.{cure}"


def _dotted_keys(config: Mapping, prefix: str = "") -> Iterator[str]:
  """Yield the keys of nested mappings, such as "optim.lr"."""
  for key, value in config.items():
    yield prefix + key
    if hasattr(value, "items"):
      yield from _dotted_keys(value, f"{prefix}{key}.")


def _did_you_mean(similar: list[str]) -> str:
  """Return a question that names the first of `similar`, or ""."""
  return f"  Did you mean {similar[0]}?" if similar else ""
