"""The grammar of GeoRouter: facts, passages and questions of countries."""
