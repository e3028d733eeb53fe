"""Two beginnings of each kind of text; a chat's are what a user says."""

CODE = [
    '''class Stack:
    """A last-in, first-out stack of items."""

    def __init__(self):
        self.items = []

    def push(self, item):
        """Adds an item to the top of the stack."""
        self.items.append(item)

    def pop(self):
''',
    '''import argparse
import json
import os


def read_records(path):
    """Reads a file of JSON lines and returns a list of dictionaries."""
''',
]

CHAT = [
    "Why is the sky blue? Explain it to a child.",
    "Write a short letter to my neighbour who has lent me a ladder.",
]

LETTER = """Dear members of the garden club,

the spring meeting takes place on Saturday, 12 April, at three o'clock in the old greenhouse behind the town hall.
Please bring seeds that you would like to exchange, a chair, and your own cup. Mrs Okafor will show us how to graft
apple trees, and Mr Lindqvist has promised to tell us what became of the hedgehogs.

With kind regards,
Thomas Abernathy
"""

MEMBERS = {"Ada Byron": "London", "Emil Post": "Warsaw", "Grace Murray": "New York", "Kurt Hahn": "Brno"}

RECORDS = "".join(
    f'{{"name": "{name}", "city": "{city}", "member": true, "fee": {{"amount": 25, "currency": "EUR"}}}}\n'
    for name, city in MEMBERS.items()
)

REPEATED = [
    f"The letter as it was sent:\n\n{LETTER}\nThe letter as it was received:\n\nDear members of",
    RECORDS,
]

STORY = [
    "Once upon a time, in a small village by the sea, there lived an old clockmaker who had never been on a boat.",
    "The last train had left an hour ago when Miriam noticed that the station was not empty.",
]

KINDS = {"code": CODE, "chat": CHAT, "repeated text": REPEATED, "story": STORY}
