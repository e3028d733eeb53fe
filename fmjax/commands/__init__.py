"""What only commands need: flags and exit codes, processes that start together, the chat terminal, files of prompts."""
