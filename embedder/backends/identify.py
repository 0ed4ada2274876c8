"""What can be said of a loaded model before it has run."""

import structlog

from chassis.errors import invalid
from embedder.backends.probes import TEXTS, Probes, probe_pixels
from embedder.fingerprint import fingerprint
from embedder.models import LoadedModel
from embedder.preprocess import geometry_of
from embedder.spec import ModelSpec
from embedder.tokenizer_export import tokenizer_spec

log = structlog.get_logger()


def identify(loaded: LoadedModel) -> tuple[ModelSpec, Probes]:
    """Takes a model's fingerprint.

    Returns:
        Its spec, in which the dimension and all that depends on what will run it are left empty, and inputs to try it
        with.

    Raises:
        LikenessError: its tokenizer is of a kind that cannot be served.
    """
    try:
        tokenizer = tokenizer_spec(loaded.tokenizer)
    except TypeError as error:
        raise invalid("LIKENESS_MODEL", f"{loaded.name} has a tokenizer that cannot be served: {error}") from error
    geometry = geometry_of(loaded.preprocess)
    spec = ModelSpec(
        name=loaded.name,
        digest=fingerprint(loaded.network, loaded.tokenizer, loaded.preprocess, loaded.architecture),
        dimension=0,
        backend="",
        device="",
        precision="",
        best_batch=0,
        geometry=geometry,
        tokenizer=tokenizer,
        texts_cut=False,
    )
    tokens = loaded.tokenizer(list(TEXTS)).numpy().astype("int64", copy=False)
    return spec, Probes(probe_pixels(geometry.height, geometry.width), tokens)
