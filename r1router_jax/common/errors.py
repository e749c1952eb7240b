"""The error whose message tells the user what to change."""


class UserError(ValueError):
  """A fault of input, options or files, which the user can put right.

  The message says what came, what was wanted and what to do.  A command prints
  it on one line and exits with code 2; every other error is a bug, which keeps
  its traceback.
  """
