"""Backups of collections: their files, how they are made, kept, deleted, and made collections again."""
