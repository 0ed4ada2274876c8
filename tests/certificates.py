"""Authorities and certificates for tests, as PEM files."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chassis.tls import ChannelTls, ListenerTls

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; its own is the file ``ca``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _begun(self._subject, self._subject, self._key, _DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, *hosts: str, expires: datetime.timedelta = _DAY) -> Certificate:
        """A certificate for hosts, names and addresses.

        Args:
            name: of whom it is, and of its files.
            hosts: what it is good for.
            expires: from now; negative: it has.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), self._subject, key, expires)
        names = x509.SubjectAlternativeName([_name(host) for host in hosts])
        if hosts:
            builder = builder.add_extension(names, critical=False)
        made = Certificate(self._folder / f"{name}-{self._name}.pem", self._folder / f"{name}-{self._name}.key")
        made.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made

    def listener(self, *, mutual: bool = False, expires: datetime.timedelta = _DAY) -> ListenerTls:
        """TLS of something that listens on loopback; ``mutual``: clients need a certificate of this authority."""
        made = self.sign("server", "localhost", "127.0.0.1", expires=expires)
        return ListenerTls(made.certificate, made.key, self.ca if mutual else None)

    def channel(self, shown: Certificate | None = None) -> ChannelTls:
        """TLS of something that believes this authority, and shows a certificate or none."""
        if shown is None:
            return ChannelTls(self.ca)
        return ChannelTls(self.ca, shown.certificate, shown.key)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, expires: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + expires)
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
