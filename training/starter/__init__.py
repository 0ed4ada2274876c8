"""Trains and measures the heads of the starter model: `python -m training.starter --help`."""
