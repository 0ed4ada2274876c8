"""How fast the embedder is beside the bare model, the course's way, other servers: ``python -m benchmarks.embedder``.

Every contender is a process of its own that is started once and then asked in turn, round after round, so that what
the machine does meanwhile meets all of them alike.
"""
