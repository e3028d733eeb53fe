"""A research fork's package: a model, an objective and a data source of its own, outside fmjax."""
