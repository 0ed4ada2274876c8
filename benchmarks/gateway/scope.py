"""How much is measured: what the command line chose."""

from dataclasses import dataclass

# "ingest" is of the model that people run, "ingest_starter" of the one that everything else is measured with.
INGEST, INGEST_STARTER = "ingest", "ingest_starter"
SECTIONS = ("latency", "rates", "overload", INGEST_STARTER, "memory", INGEST)
STARTER, CLIP = "starter", "ViT-B-32"
CONCURRENCY = (1, 8, 32)
# In the collection that is searched; beside the embedder, a search of ten times as many takes hardly longer.
COLLECTION, TOP_K = "searched", 10


@dataclass(frozen=True)
class Scope:
    """How long everything takes.

    Attributes:
        model: of all sections but "ingest": "starter", or an architecture that open_clip knows; it gets random weights.
        ingest_model: of "ingest", which has services of its own, so that it finds the same whatever else is measured.
        quick: whether this is the cut that ends in ten minutes.
        items: in the collection that is searched.
        rounds: all in turn; medians are shown. A machine that others share changes its speed within seconds: many
            rounds of short windows tell more than few of long ones.
        window_s: one measurement of searches.
        ramp_s: before each, in which nothing counts.
        overload_s: one measurement of arrivals, and of what callers are answered before.
        overload_rounds: of these.
        ingest_s: one measurement of ingest.
        ingest_ramp_s: before each: until the window of a stream is full.
        clip_ingest_s: one of "ingest": the gateway answers 64 pictures at a time, of which CLIP takes 30 a second.
        settled: pictures taken in before memory counts.
        pictures: pictures taken in while memory is watched.
    """

    model: str
    ingest_model: str
    quick: bool
    items: int
    rounds: int
    window_s: float
    ramp_s: float
    overload_s: float
    overload_rounds: int
    ingest_s: float
    ingest_ramp_s: float
    clip_ingest_s: float
    settled: int
    pictures: int

    @staticmethod
    def of(model: str | None, *, quick: bool) -> "Scope":
        """The whole measurement, or the cut; of one model alone if it is named."""
        models = (model, model) if model else (STARTER, CLIP)
        if quick:
            return Scope(*models, True, 5_000, 3, 2.5, 0.5, 4.0, 1, 8.0, 2.0, 16.0, 500, 2_500)
        return Scope(*models, False, 20_000, 7, 8.0, 1.0, 10.0, 3, 20.0, 3.0, 30.0, 500, 20_000)

    def sections(self) -> list[str]:
        """All that there are of its models."""
        both = self.ingest_model != self.model == STARTER
        return [section for section in SECTIONS if both or section != INGEST_STARTER]
