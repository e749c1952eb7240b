"""Small PDF files, written by hand as the standard describes them."""


def make_pdf(pages: list[str], title: str = "") -> bytes:
  """Return a PDF with these texts, of lines each, on its pages."""
  kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
  objects = [
    "<</Type/Catalog/Pages 2 0 R>>",
    f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
  ]
  for number, page in enumerate(pages):
    lines = "".join(f"({line}) Tj T* " for line in page.splitlines())
    drawn = f"BT /F1 12 Tf 72 720 Td 14 TL {lines}ET" if page else ""
    about = "/Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]"
    about += "/Resources<</Font<</F1 3 0 R>>>>"
    objects.append(f"<<{about}/Contents {5 + 2 * number} 0 R>>")
    objects.append(f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream")
  objects.append(f"<</Title({title})>>")
  return _join_objects(objects)


def _join_objects(objects: list[str]) -> bytes:
  """Return a file of numbered objects, the first and last of them its roots."""
  data, offsets = b"%PDF-1.4\n", []
  for number, text in enumerate(objects, 1):
    offsets.append(len(data))
    data += f"{number} 0 obj{text}endobj\n".encode("latin-1")
  size, start = len(objects) + 1, len(data)
  table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
  roots = f"<</Size {size}/Root 1 0 R/Info {len(objects)} 0 R>>"
  return (
    data
    + (
      f"xref\n0 {size}\n0000000000 65535 f \n{table}"
      f"trailer{roots}\nstartxref\n{start}\n%%EOF"
    ).encode()
  )
