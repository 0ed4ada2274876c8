"""The state of a gateway, of the services behind it, and of its collections."""

from dataclasses import dataclass

from likeness_client.errors import LikenessError
from likeness_client.items import Fingerprint


@dataclass(frozen=True)
class Limits:
    """What the embedder accepts.

    Attributes:
        max_inputs: most inputs in one of its calls.
        max_encoded_bytes: most bytes of one encoded picture.
        max_pixels: most pixels (width × height) of one picture.
        max_message_bytes: most bytes of one message.
        max_text_bytes: most bytes of UTF-8 in one text.
        context_length: tokens after which a text is cut.
    """

    max_inputs: int
    max_encoded_bytes: int
    max_pixels: int
    max_message_bytes: int
    max_text_bytes: int
    context_length: int


@dataclass(frozen=True)
class ServiceStatus:
    """One service behind the gateway.

    Attributes:
        name: such as ``"embedder"``.
        address: where the gateway looks for it.
        serving: True if it answered just now.
        error: why not, if not.
    """

    name: str
    address: str
    serving: bool
    error: LikenessError | None


@dataclass(frozen=True)
class ModelStatus:
    """The embedder's model.

    Attributes:
        fingerprint: its identity.
        device: where it runs, such as ``"cpu"``.
        precision: its arithmetic, such as ``"fp32"``.
        limits: what it accepts.
    """

    fingerprint: Fingerprint
    device: str
    precision: str
    limits: Limits


@dataclass(frozen=True)
class CollectionStatus:
    """One collection.

    Attributes:
        name: its name.
        fingerprint: the model whose vectors it holds.
        count: items in it.
        searchable: True if the embedder's model is the collection's.
    """

    name: str
    fingerprint: Fingerprint
    count: int
    searchable: bool


@dataclass(frozen=True)
class Status:
    """The state of the whole.

    Attributes:
        version: the gateway's release.
        services: those behind the gateway.
        model: None while no embedder answers.
        collections: by name, the first 1,000; empty while the indexer does not answer.
    """

    version: str
    services: tuple[ServiceStatus, ...]
    model: ModelStatus | None
    collections: tuple[CollectionStatus, ...]

    @property
    def serving(self) -> bool:
        """True if every service answered."""
        return all(service.serving for service in self.services)
