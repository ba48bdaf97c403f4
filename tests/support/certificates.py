"""Self-signed certificates for tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate: it is its own authority.

    Attributes:
        cert: Its file, in PEM.
        key: The file of its private key, in PEM and without a password.
    """

    cert: Path
    key: Path

    @staticmethod
    def made_in(folder: Path, name: str, hosts: tuple[str, ...] = LOCAL) -> Certificate:
        """Make one for some hosts, names or addresses."""
        made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        known = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        now = datetime.now(UTC)
        extensions = {
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]): False,
            # Python 3.13 accepts no authority without these three.
            x509.BasicConstraints(ca=True, path_length=None): True,
            known: False,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known): False,
        }
        builder = x509.CertificateBuilder(
            issuer_name=subject,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(hours=1),
            not_valid_after=now + timedelta(days=2),
        )
        for extension, critical in extensions.items():
            builder = builder.add_extension(extension, critical)
        made.cert.write_bytes(
            builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
