"""What `import r1router_jax` offers, and what it does not import."""

import subprocess
import sys

SCRIPT = """
import sys
import r1router_jax

heavy = {"absl", "jax", "numpy", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, f"import r1router_jax imports {heavy}"
assert sorted(r1router_jax.__all__) == r1router_jax.__all__
assert set(r1router_jax.__all__) <= set(dir(r1router_jax))

# A record is imported without the rest.
r1router_jax.Question("id", "Who?")
assert "jax" not in sys.modules

from absl import flags
before = set(flags.FLAGS)
for name in r1router_jax.__all__:
  value = getattr(r1router_jax, name)
  assert value.__name__ == name and value.__doc__, name
  assert value is getattr(sys.modules[value.__module__], name)
# No module of a name defines flags, which a user's own might collide with.
ours = {f for f in set(flags.FLAGS) - before
        if "r1router" in flags.FLAGS.find_module_defining_flag(f)}
assert not ours, ours

try:
  r1router_jax.open_polcy
except AttributeError as error:
  print(error)
"""


def test_names_are_imported_when_used():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "has no attribute 'open_polcy'" in done.stdout
