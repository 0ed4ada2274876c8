"""The embedder: pictures and texts in, vectors out. It owns the model and knows nothing of collections.

A request's path: ``servicer`` → ``pipeline`` (``decode``, ``preprocess``, ``tokens``) → ``batcher`` → ``backends``.
"""

import os

from chassis.cores import tell_libraries

# Read by the model libraries when they are imported, so they have to be set before that: here. Nothing is reported to
# anybody, and progress bars would tear the log's lines apart.
for _variable in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ[_variable] = "1"

# Threads of torch's arithmetic that wait for one another sleep instead of spinning: the cores are shared with the
# decode threads and often with other services. Starter, one picture, two busy cores: 1,400 → 150 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The model's own threads are a setting. These are of what happens before there is one: loading, converting, compiling.
tell_libraries("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
