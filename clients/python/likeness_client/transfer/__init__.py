"""Whole collections to files and back: Parquet, JSON Lines, and numpy arrays with a CSV beside them.

``download.download`` writes an export; ``sources.open_source`` and ``upload.Upload`` read one back. Memory stays flat
however many items there are, and both go on where they were interrupted.
"""
