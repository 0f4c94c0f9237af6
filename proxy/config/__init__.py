"""The config file: its tables, its secrets, and the objects it describes."""
