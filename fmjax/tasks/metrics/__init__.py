"""Metrics of generated texts: answers (`squad`), summaries (`rouge`), translations (`translation`)."""
