"""Questions and training rows: GeoRouter, R1-Router's files, benchmarks."""
