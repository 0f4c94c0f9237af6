"""What can be done from the command line beside serving, a file for each subject."""
