"""Data types, files, command line and logs that every room may use."""
