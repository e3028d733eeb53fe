"""Evaluation tasks, one file a group."""

from fmjax.registry import Registry

TASKS = Registry("task", {})
