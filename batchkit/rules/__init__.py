"""Decide: values in, a value out. No clock, no dice, no files: time and chance come in as arguments."""
