"""The Jinja2 environment of the page: every value is sanitised and escaped.

A template writes `{{ value }}`: `finalize` sanitises the value, then autoescape
escapes it.  Only `Markup` is left as it is: figures and macros, whose values
went the same way, and the data URIs of thumbnails.
"""

import base64
import functools
import io

import jinja2
from markupsafe import Markup
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.text import sanitize_text

MAX_CHARACTERS = 4000  # Characters of one text that the page keeps.
THUMBNAIL_SIDE = 160  # Pixels; larger images are shrunk.


def sanitize_value(value: object) -> str:
  """Return a value as one harmless line of bounded length, yet unescaped."""
  if isinstance(value, Markup):
    return value
  return sanitize_text(str(value), limit=MAX_CHARACTERS)


@functools.lru_cache(maxsize=256)
def encode_thumbnail(path: str) -> Markup | None:
  """Return the image at `path` as a data URI, or None if it cannot be used.

  The file is decoded and encoded anew: only its pixels reach the page.
  """
  try:
    image = Image.fromarray(images.load_image(path))
  except images.BadImage:
    return None
  image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
  data = io.BytesIO()
  image.save(data, "PNG", optimize=True)
  code = base64.b64encode(data.getvalue()).decode()
  # Markup, lest the URI be cut at `MAX_CHARACTERS`; base64 needs no escape.
  return Markup(f"data:image/png;base64,{code}")


ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader("r1router_jax.report", ""),
  autoescape=True,
  finalize=sanitize_value,
  undefined=jinja2.StrictUndefined,  # A misspelt field is an error, not "".
  trim_blocks=True,
  lstrip_blocks=True,
)
ENVIRONMENT.filters.update(sanitize=sanitize_value, thumbnail=encode_thumbnail)
