"""What outlives a call: which response belongs to which team."""
