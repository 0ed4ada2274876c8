"""Collections in memory: their rows, what they are found by, and how they come to be there and on disk."""
