"""Rebuilds the GeoRouter world from public sources; run `__main__`."""
