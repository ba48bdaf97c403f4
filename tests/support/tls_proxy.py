"""TLS in front of a server that speaks none."""

from __future__ import annotations

import ssl

from tests.support.certificates import Certificate
from tests.support.passing_proxy import Address, PassingProxy


def tls_proxy(
    address: Address, server: Address, certificate: Certificate, *, asks_clients: bool
) -> PassingProxy:
    """Return a proxy that takes TLS connections and passes them on, plain.

    Args:
        address: Where it listens.
        server: Where the server listens.
        certificate: What it shows its clients.
        asks_clients: Whether clients must show this certificate too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    if asks_clients:
        context.load_verify_locations(certificate.cert)
        context.verify_mode = ssl.CERT_REQUIRED
    return PassingProxy(address, server, context)
