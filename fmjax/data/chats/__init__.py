"""Chats: records of the shapes that people have, rendered by a model's chat template, of which replies are learnt."""
