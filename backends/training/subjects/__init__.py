"""The subjects that the model is trained on, one file each; a subject turns a random source into one dialogue."""
