"""TLS on every listener and channel, from PEM files: ours, and of those that we believe.

A listener has a certificate and its key; with the certificates of an authority besides, it takes only clients that
have a certificate from there (mTLS). A channel believes an authority's servers, and may have a certificate of its own.
"""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

# How long a handshake may take, in seconds.
_HANDSHAKE_S = 5.0


class TlsError(ValueError):
    """Files of certificates or keys cannot be used; the message says which, and why."""


@dataclass(frozen=True)
class ListenerTls:
    """Of what listens.

    Attributes:
        certificate: PEM file: its certificate, and those between it and the authority's.
        key: PEM file: the key to it, without a password.
        client_ca: PEM file: of which authorities clients need a certificate; None: clients need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For what serves HTTP.

        Raises:
            TlsError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load(context, self.certificate, self.key)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            _believe(context, self.client_ca)
        return context

    def grpc(self) -> grpc.ServerCredentials:
        """For gRPC.

        Raises:
            TlsError: a file cannot be used.
        """
        self.context()  # gRPC itself would not say what is wrong with them
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            None if self.client_ca is None else self.client_ca.read_bytes(),
            require_client_auth=self.client_ca is not None,
        )


@dataclass(frozen=True)
class ChannelTls:
    """Of what connects.

    Attributes:
        ca: PEM file, or its bytes: the authorities whose servers are believed, or the one server's own certificate;
            None: those that come with gRPC.
        certificate: PEM file: a certificate of its own, for servers that want one; with ``key``, or neither.
        key: PEM file: the key to it.
    """

    ca: Path | bytes | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For what speaks HTTP.

        Raises:
            TlsError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is None:
            context.load_default_certs()
        else:
            _believe(context, self.ca)
            # As gRPC does: the one server's own certificate is enough.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.certificate is not None:
            _load(context, self.certificate, self.key)
        return context

    def grpc(self) -> grpc.ChannelCredentials:
        """For gRPC.

        Raises:
            TlsError: a file cannot be used.
        """
        self.context()
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes() if isinstance(self.ca, Path) else self.ca,
            None if self.key is None else self.key.read_bytes(),
            None if self.certificate is None else self.certificate.read_bytes(),
        )


def of_this_host(environment: Mapping[str, str] = os.environ) -> ChannelTls | None:
    """How to speak to a service that has the settings of this environment; None: without TLS.

    For health checks: they believe the service's own certificate, as its file has it now, and show it where clients
    have to have one.
    """
    certificate, key = environment.get("LIKENESS_TLS_CERT"), environment.get("LIKENESS_TLS_KEY")
    if not certificate or not key:
        return None
    return ChannelTls(Path(certificate), Path(certificate), Path(key))


def name_of(address: str, tls: ChannelTls) -> str | None:
    """A name that stands in the certificate of the server there; None: in there is none, or it does not answer.

    For those that believe this very certificate, wherever the server is.

    Args:
        address: ``host:port``.
        tls: whom to believe.
    """
    context = tls.context()
    context.check_hostname = False
    try:
        with _handshake(address, context) as encrypted:
            certificate = encrypted.getpeercert() or {}
    except OSError:  # ssl.SSLError among them; asking for the health then says what is wrong
        return None
    names = certificate.get("subjectAltName", ())
    return str(names[0][1]) if names else None


def as_it_shows(address: str, tls: ChannelTls) -> ChannelTls:
    """The same, but believing the certificate that the server there shows, whichever that is, if it shows one.

    For the health check of a service by its own machine, and for nothing else. A service shows the certificate that it
    read at its start; its file may hold a renewed one by now. Whoever else listened at the address could say no more
    than that he serves, and learns nothing: not a secret is sent, and one's own certificate is for everybody to see.

    Args:
        address: ``host:port``, on loopback.
        tls: what to show.
    """
    context = tls.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _handshake(address, context) as encrypted:
            shown = encrypted.getpeercert(binary_form=True)
    except OSError:  # as above
        return tls
    return tls if shown is None else replace(tls, ca=ssl.DER_cert_to_PEM_cert(shown).encode())


def distrust(address: str, tls: ChannelTls) -> str | None:
    """Why the certificate of the server there is not believed; None: it is, or it is not to be seen."""
    context = tls.context()
    context.check_hostname = False
    try:
        with _handshake(address, context):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not believed: {error.verify_message}"
    except OSError:
        return None


@contextmanager
def _handshake(address: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=_HANDSHAKE_S) as connection,
        context.wrap_socket(connection) as encrypted,
    ):
        yield encrypted


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # A key with a password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsError(f"{certificate} and {key} are no certificate (PEM) and its key: {_why(error)}") from error


def _believe(context: ssl.SSLContext, authorities: Path | bytes) -> None:
    try:
        if isinstance(authorities, bytes):
            context.load_verify_locations(cadata=authorities.decode())
        else:
            context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:
        named = authorities if isinstance(authorities, Path) else "what is to be believed"
        raise TlsError(f"{named} holds no certificates (PEM): {_why(error)}") from error


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
