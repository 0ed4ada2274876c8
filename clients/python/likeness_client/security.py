"""How a client proves who it is, and which servers it believes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import grpc

from likeness_client.call_metadata import with_metadata

API_KEY_VARIABLE = "LIKENESS_API_KEY"


@dataclass(frozen=True)
class Security:
    """An API key and TLS, each if wanted.

    Attributes:
        api_key: shown to gateways, never to indexers; None: none.
        tls: whether to speak TLS, believing the authorities that come with gRPC.
        tls_ca: PEM file of the authorities to believe instead; with it TLS is spoken.
        tls_cert: PEM file of a certificate of the client's own, for servers that want one; with it TLS is spoken.
        tls_key: PEM file of the key to it.
    """

    api_key: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a certificate and its key go together; one of them is missing")
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ValueError("the API key has characters that no key has; is the file the right one?")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """With the key in LIKENESS_API_KEY, if there is one."""
        return cls(api_key=environment.get(API_KEY_VARIABLE, "").strip() or None)

    def without_key(self) -> Self:
        """The same TLS, for a server that knows no keys."""
        return replace(self, api_key=None)

    def channel(self, target: str, options: list[tuple[str, int | str]]) -> grpc.Channel:
        """A channel with all of it.

        Raises:
            ValueError: a file cannot be read.
        """
        if self.tls or self.tls_ca or self.tls_cert:
            credentials = grpc.ssl_channel_credentials(_read(self.tls_ca), _read(self.tls_key), _read(self.tls_cert))
            channel = grpc.secure_channel(target, credentials, options=options)
        else:
            channel = grpc.insecure_channel(target, options=options)
        if self.api_key is None:
            return channel
        bearer = ("authorization", f"Bearer {self.api_key}")
        return with_metadata(channel, lambda: [bearer])


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
