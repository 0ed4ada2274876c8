"""What every Likeness service shares: settings, lifecycle, health, errors, logs and the contract's values."""

__version__ = "0.1.0"
