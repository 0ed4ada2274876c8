"""What every Likeness service shares: settings, lifecycle, health, errors, logs and the contract's values."""

# The release of all that is here; pyproject.toml takes it from this line.
__version__ = "0.1.0"
