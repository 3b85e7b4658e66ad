"""First-order logic."""
