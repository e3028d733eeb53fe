"""Plans of runs: the train step compiled for devices that need not be there, and what it takes."""
