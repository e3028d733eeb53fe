"""Models that act: a goal, tools, a budget, a transcript that can be replayed; see README.md here."""
