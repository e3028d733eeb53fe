"""Meshes, the table of logical axes, and start-up on many hosts."""
