"""Tokenizers of every kind behind one protocol, and the chat templates that come with them."""
