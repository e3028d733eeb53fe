"""A trained model as one object, and what it computes with: caches, samplers, the generation engine."""
