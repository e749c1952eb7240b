"""Rebuilds the GeoRouter world from public sources; see `__main__`."""
