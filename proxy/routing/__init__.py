"""From a model's name to a backend's reply: routes, and attempts at their targets."""
