"""Caches, samplers and the generation engine."""
