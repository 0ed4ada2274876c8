"""The commands of ``likeness``, a module for each family."""
