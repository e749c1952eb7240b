"""A grammar of invented domains: questions, documents, tables and pictures."""
