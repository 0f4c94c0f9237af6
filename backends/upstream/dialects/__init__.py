"""What servers of the Responses protocol do differently: profiles, what they refuse, repairs of what they send."""
