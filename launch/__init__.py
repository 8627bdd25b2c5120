"""Thin command lines: the only place that reads flags, environment or signals."""
