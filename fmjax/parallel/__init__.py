"""The device mesh and the table of logical axes."""
