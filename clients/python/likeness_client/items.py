"""What goes in and what comes out: terms of a search, pictures to take in, items found."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from likeness_client.errors import LikenessError
from likeness_client.facets import Facet
from likeness_client.lists import listed

MetadataValue = str | int | float | bool | list[str]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a model.

    Attributes:
        model: its name for people.
        digest: SHA-256 in hexadecimal; two vectors may be compared if, and only if, these are equal.
        dimension: the length of its vectors.
    """

    model: str
    digest: str
    dimension: int


class TermKind(Enum):
    """What a term is."""

    IMAGE = "image"
    TEXT = "text"
    ID = "id"
    VECTOR = "vector"


@dataclass(frozen=True)
class Term:
    """One part of a search; made by ``Term.image``, ``Term.text``, ``Term.id`` and ``Term.vector``.

    Attributes:
        kind: what it is.
        value: an encoded picture's bytes, a text, an item's id, or a vector.
        weight: its share, −100 to 100 and not 0; negative: unlike this.
    """

    kind: TermKind
    value: bytes | str | tuple[float, ...]
    weight: float = 1.0

    @classmethod
    def image(cls, source: bytes | PathLike, weight: float = 1.0) -> "Term":
        """Like this picture: an encoded picture's bytes, or the path of a file, which is read now.

        Raises:
            OSError: the file cannot be read.
        """
        return cls(TermKind.IMAGE, source if isinstance(source, bytes) else Path(source).read_bytes(), weight)

    @classmethod
    def text(cls, text: str, weight: float = 1.0) -> "Term":
        """Like what this text says."""
        return cls(TermKind.TEXT, text, weight)

    @classmethod
    def id(cls, item_id: str, weight: float = 1.0) -> "Term":
        """Like this stored item, which is left out of the hits."""
        return cls(TermKind.ID, item_id, weight)

    @classmethod
    def vector(cls, vector: Iterable[float], weight: float = 1.0) -> "Term":
        """Like this vector, of the collection's dimension and from its model."""
        return cls(TermKind.VECTOR, tuple(float(number) for number in vector), weight)


@dataclass(frozen=True)
class Item:
    """A stored picture.

    Attributes:
        id: its id.
        uri: where it came from, as whoever stored it told; may be empty.
        labels: what it is called.
        metadata: the caller's, and the gateway's own: ``width``, ``height``, ``sha256``, ``format``, ``bytes``, and
            from EXIF ``taken_at``, ``camera``, ``latitude`` and ``longitude``.
        vector: if asked for.
    """

    id: str
    uri: str = ""
    labels: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    vector: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Hit:
    """A picture found.

    Attributes:
        rank: 1 for the best; with an offset, that many more.
        item: the picture.
        score: how alike, higher is more; the cosine in collections that the gateway makes. Compare within one search.
        distance: how far, lower is more alike; ``likeness.common.v1.Metric`` has the formulas.
        term_similarities: if asked for: the cosine with each term, −1 to 1, in the order of the terms.
    """

    rank: int
    item: Item
    score: float
    distance: float = 0.0
    term_similarities: tuple[float, ...] = ()


@dataclass(frozen=True)
class SearchTimings:
    """Where the time of one search went, in seconds, as the gateway saw it.

    Attributes:
        embed_s: embedding the terms.
        query_s: looking up the neighbours.
        total_s: all of it.
        facets_s: counting facets, beside the query; None, here and below: there was nothing of the kind.
        explain_s: comparing hits with terms.
        embed_queue_s: of embed_s, as the embedder tells: time in which none of the terms was being worked on. This and
            the next two may be of a call that texts of other searches shared.
        embed_decode_s: decoding and resizing, summed over the pictures.
        embed_inference_s: forward passes of the model.
    """

    embed_s: float
    query_s: float
    total_s: float
    facets_s: float | None = None
    explain_s: float | None = None
    embed_queue_s: float | None = None
    embed_decode_s: float | None = None
    embed_inference_s: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        hits: best first.
        collection: the collection searched.
        fingerprint: the model whose vectors were searched.
        timings: where the time went.
        facets: the values of each key asked for, in the order asked for.
        count: if facets were asked for: items that the condition leaves.
    """

    hits: tuple[Hit, ...]
    collection: str
    fingerprint: Fingerprint
    timings: SearchTimings
    facets: tuple[Facet, ...] = ()
    count: int | None = None


@dataclass(frozen=True)
class GetResult:
    """Items read by id.

    Attributes:
        items: those that exist, in the order asked for.
        missing_ids: those that do not, in the order asked for.
    """

    items: tuple[Item, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class MetadataUpdated:
    """What became of a change of metadata.

    Attributes:
        updated: items that exist, and are as asked for now.
        missing_ids: ids that do not exist, in the order given.
    """

    updated: int
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture to take in.

    Attributes:
        image: an encoded picture's bytes, or the path of a file, which is read only when the stream takes it.
        id: 1 to 512 bytes; empty: the SHA-256 of the bytes, so that the same picture sent twice is stored once, with
            the labels, uri and metadata that were sent last.
        uri: where it came from, at most 4,096 bytes; None: the ``file://`` URI of the path, or nothing if there is no
            path, or it is longer than that.
        labels: what to call it; at most 256, non-empty.
        metadata: anything else, up to 64 keys; those that the gateway writes itself are refused.
    """

    image: bytes | PathLike
    id: str = ""
    uri: str | None = None
    labels: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        listed(self.labels, "labels")

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return None if isinstance(self.image, bytes) else Path(self.image)


@dataclass(frozen=True)
class IngestOptions:
    """How pictures are taken in.

    Attributes:
        skip_existing: leave out a picture whose id is there already; otherwise it replaces what is there.
        skip_exact_duplicates: leave out one that is there already, byte for byte, under another id.
        skip_near_duplicates: leave out one to which another item has at least this score, such as 0.97; None: none.
        keep_originals: have the gateway keep the bytes too, from which it can embed them anew.
        thumbnails: have it make thumbnails.
    """

    skip_existing: bool = False
    skip_exact_duplicates: bool = False
    skip_near_duplicates: float | None = None
    keep_originals: bool = False
    thumbnails: bool = True


@dataclass(frozen=True)
class Skipped:
    """Why a picture was left out, as the options ask.

    Attributes:
        reason: ``"EXISTS"``, ``"EXACT_DUPLICATE"`` or ``"NEAR_DUPLICATE"``.
        existing_id: of the item that is there.
        score: how alike it is, of a near duplicate.
    """

    reason: str
    existing_id: str
    score: float = 0.0


@dataclass(frozen=True)
class IndexOutcome:
    """What became of one picture.

    Attributes:
        picture: as the caller gave it.
        id: its id, also where that was left to the server; empty if it never reached one.
        error: why it was refused; None if it was not. If it is ``passing``, the picture may be given again later.
        size: bytes of the encoded picture; 0 if it was not read.
        skipped: why it was left out; None if it was not.
    """

    picture: Picture
    id: str
    error: LikenessError | None
    size: int
    skipped: Skipped | None = None

    @property
    def stored(self) -> bool:
        """True if it is stored, on disk, and visible to every later search."""
        return self.error is None and self.skipped is None
