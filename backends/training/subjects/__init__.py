"""What the model is taught, one file per subject; each subject turns a random source into one dialogue."""
