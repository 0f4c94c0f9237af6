"""State that outlives a call: responses, conversations, background jobs, and the owners of ids."""
