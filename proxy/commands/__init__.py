"""The command line beside `serve`: one subject a file."""
