"""What the gateway can be told."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from chassis.keys import Keys, KeysError
from chassis.names import is_loopback
from chassis.places import Place
from chassis.settings import ServiceSettings
from chassis.tls import ChannelTls

_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]*)")


def _words(told: Any) -> Any:
    """The parts of a text with commas; what is no text is taken as it is."""
    return [word.strip() for word in told.split(",") if word.strip()] if isinstance(told, str) else told


def _lower(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


def _origins(told: tuple[str, ...]) -> tuple[str, ...]:
    for origin in told:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(
                f"{origin!r} is no origin; expected scheme://host or scheme://host:port, nothing behind it"
            )
    return told


def _names(told: tuple[str, ...]) -> tuple[str, ...]:
    """The same, as they are found in Host: in lower case, addresses of IPv6 without brackets."""
    names = tuple(name.lower().removeprefix("[").removesuffix("]") for name in told)
    for name, as_told in zip(names, told, strict=True):
        if not _NAME.fullmatch(name) and not _is_address(name):
            raise ValueError(
                f"{as_told!r} is no name as Host has it; expected one in ASCII, such as example.org, 127.0.0.1 or ::1, "
                "without a port"
            )
    return names


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


Schemes = Annotated[tuple[Literal["http", "https"], ...], NoDecode, BeforeValidator(_words), Field(min_length=1)]
Ports = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode, BeforeValidator(_words), Field(min_length=1)
]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_origins)]
Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_lower)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_names)]


class GatewaySettings(ServiceSettings):
    """The gateway: the address that clients call. It answers from an embedder and an indexer."""

    port: int = Field(
        50050, ge=0, le=65535, validation_alias="LIKENESS_GATEWAY_PORT", description="gRPC port; 0: any free one."
    )
    http_port: int = Field(
        8080, ge=-1, le=65535, description="HTTP port: Connect, JSON, thumbnails, metrics; 0: any free one; -1: none."
    )
    http_connections: int = Field(
        512, ge=1, le=100_000, description="Most HTTP connections open at once; more are closed at once."
    )
    http_headers_s: float = Field(
        10, gt=0, le=600, description="Longest time that the headers of an HTTP request may take, in seconds."
    )
    http_body_s: float = Field(
        60, gt=0, le=3600, description="Longest time that the body of an HTTP request may take, in seconds."
    )
    http_in_flight_mb: int = Field(
        256,
        ge=1,
        le=65536,
        description="Most bytes of HTTP requests held at once, in MiB (at least one message's), and as many of large "
        "answers not yet taken; more are refused and told to come again.",
    )
    http_hosts: Names = Field(
        (),
        description="Names (Host, without the port) to which the gateway answers by HTTP, separated by commas. Empty: "
        "any, where there are API keys or LIKENESS_ANONYMOUS; else localhost, 127.0.0.1 and ::1.",
    )
    cors_origins: Origins = Field(
        (),
        description="Origins, such as https://example.org, separated by commas, whose pages may call by HTTP. Empty: "
        "none.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File (TOML) of the API keys: for each a [[key]] with name, sha256 of the key, scopes, and perhaps "
        "limits; `likeness keys new` prints one. Read again when it changes, without a restart.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys besides, as name:sha256:scope with commas between; scopes: read, write, admin, or "
        "several joined by +.",
    )
    anonymous: bool = Field(
        False,
        description="Without API keys the gateway listens on loopback only, whatever LIKENESS_HOST says; true: where "
        "that says all the same, and everybody who can reach it may do everything. With API keys it means nothing.",
    )
    upstream_tls_ca: Path | None = Field(
        None,
        description="File (PEM) of the authorities whose embedders and indexers are believed; with it the gateway "
        "speaks TLS to both. Their certificates need the names in their addresses.",
    )
    upstream_tls_cert: Path | None = Field(
        None, description="File (PEM) of the certificate that the gateway shows them, where they want one (mTLS)."
    )
    upstream_tls_key: Path | None = Field(None, description="File (PEM) of the key to LIKENESS_UPSTREAM_TLS_CERT.")
    embedder_address: str = Field(
        "localhost:50051",
        description="Where the embedders are: host:port (all addresses of a DNS name in turn) or a gRPC target.",
    )
    embedder_connections: int = Field(
        8,
        ge=1,
        le=256,
        description="Connections to each of their addresses, for searches and as many for bulk work, 1 to 256. "
        "Processes that share an address (the embedder's LIKENESS_WORKERS) get them by chance: take four times as many "
        "as there are processes.",
    )
    indexer_address: str = Field("localhost:50052", description="Where the indexer is: host:port or a gRPC target.")
    indexer_read_address: str = Field(
        "",
        description="Where searches, lists and counts are asked, instead of the indexer: its readers "
        "(LIKENESS_ROLE=reader), all addresses in turn but those whose health check says NOT_SERVING. They see a write "
        "a second or two later. Empty: the indexer.",
    )
    ride_out_s: float = Field(
        15,
        ge=0,
        le=600,
        description="How long a call that may be repeated is, while the embedder or the indexer is away, in seconds; "
        "within the caller's deadline.",
    )
    # Chroma takes 1.07, 0.67 and 0.52 ms of CPU a picture for batches of 32, 64 and 128. The more there are in a batch,
    # the longer it is under way, and the fewer streams find room at the embedder: of 128, two.
    ingest_batch_items: int = Field(
        64, ge=1, le=256, description="Most pictures that ingest embeds and stores in one call each."
    )
    ingest_batch_mb: int = Field(
        16, ge=1, le=512, description="Encoded size, in MiB, at which an ingest batch takes no further picture."
    )
    ingest_batches: int = Field(
        3, ge=1, le=64, description="Batches under way at once for one ingest stream; raise it with embedder replicas."
    )
    ingest_streams: int = Field(
        16, ge=1, le=1024, description="Most ingest streams open at once; more are refused and told to come again."
    )
    ingest_window_mb: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most encoded bytes, in MiB, read from one ingest stream and not yet answered. With the copies on "
        "their way to the embedder, a busy stream holds about five times that.",
    )
    ingest_call_s: float = Field(
        120, gt=0, le=3600, description="Longest wait for one embedding or storing call of an ingest, in seconds."
    )
    media_url: Place = Field(
        "data/media",
        description="Where thumbnails and originals are: a directory, or a URL that fsspec knows, such as "
        "s3://bucket/media (which needs the package s3fs). Gateways of one indexer share it; others use another.",
    )
    thumbnails: bool = Field(True, description="Whether ingest makes thumbnails; a client may still ask for none.")
    label_cache: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="Most labels whose vectors Classify and SuggestLabels remember; 512 numbers take "
        "about 2.5 KiB each.",
    )
    vector_cache: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="Most texts, and as many pictures, whose vectors searches and Classify remember; 512 numbers take "
        "about 2.5 KiB each.",
    )
    duplicate_streams: int = Field(
        2,
        ge=1,
        le=64,
        description="Most FindDuplicates streams open at once; more are refused and told to come again. One that finds "
        "a million near duplicates holds about 250 MB.",
    )
    suggestion_streams: int = Field(
        4, ge=1, le=64, description="Most SuggestLabels streams open at once; more are refused and told to come again."
    )
    fetch: bool = Field(
        False,
        description="Whether pictures may be given by uri; the gateway fetches them, never from private addresses.",
    )
    fetch_max_mb: int = Field(32, ge=1, le=512, description="Largest picture fetched, in MiB.")
    fetch_timeout_s: float = Field(
        20, gt=0, le=600, description="Longest time for one picture, redirects included, in seconds."
    )
    fetch_schemes: Schemes = Field(("https", "http"), description="Schemes fetched, separated by commas.")
    fetch_ports: Ports = Field((443, 80), description="TCP ports fetched from, separated by commas.")
    fetch_redirects: int = Field(3, ge=0, le=20, description="Most redirects followed for one picture.")
    fetch_hosts: Hosts = Field(
        (),
        description="The only hosts fetched from, separated by commas; .example.org: everything below it. Empty: any.",
    )
    fetch_at_once: int = Field(16, ge=1, le=256, description="Pictures fetched at once; more wait.")

    @property
    def keyed(self) -> bool:
        """Whether calls need an API key. Decided here once: what becomes of the file later never opens the gateway."""
        return self.api_keys_file is not None or bool(self.api_keys.get_secret_value())

    @property
    def listen_host(self) -> str:
        """LIKENESS_HOST; loopback instead, where anybody who came could do anything, unless that is meant."""
        return self.host if self.keyed or self.anonymous or is_loopback(self.host) else "127.0.0.1"

    @property
    def upstream_tls(self) -> ChannelTls | None:
        """TLS to the embedder and the indexer; None: without."""
        if self.upstream_tls_ca is None:
            return None
        return ChannelTls(self.upstream_tls_ca, self.upstream_tls_cert, self.upstream_tls_key)

    @model_validator(mode="after")
    def _upstream_tls_is_usable(self) -> Self:
        if (self.upstream_tls_cert is None) != (self.upstream_tls_key is None):
            raise ValueError("LIKENESS_UPSTREAM_TLS_CERT and LIKENESS_UPSTREAM_TLS_KEY go together; one is missing")
        if self.upstream_tls is not None:
            self.upstream_tls.context()
        elif self.upstream_tls_cert is not None:
            raise ValueError("LIKENESS_UPSTREAM_TLS_CERT needs LIKENESS_UPSTREAM_TLS_CA")
        return self

    @model_validator(mode="after")
    def _keys_are_usable(self) -> Self:
        if self.keyed:
            try:
                Keys(self.api_keys_file, self.api_keys.get_secret_value())
            except KeysError as error:
                raise ValueError(f"LIKENESS_API_KEYS_FILE and LIKENESS_API_KEYS: {error}") from error
        return self
