"""A study, whatever it is, becomes a Volume."""
