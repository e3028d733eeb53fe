"""Rewards of replies: a function, a verifier, a lexicon, reward models; several with weights."""
