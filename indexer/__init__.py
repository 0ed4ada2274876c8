"""The indexer: collections of vectors with metadata over Chroma, and their nearest neighbours."""

from chassis.cores import tell_libraries

# faiss's and numpy's threads, and Arrow's, which reads and writes snapshots and backups.
tell_libraries("OMP_NUM_THREADS")
