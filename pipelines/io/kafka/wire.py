"""One connection to one broker, made by hand, so that every failure has its own error.

The clients say only that they could not connect, some after half a minute. Here the name is looked
up, the socket connected, TLS agreed, the versions exchanged and the user logged in one after the
other, each within the same deadline; requests are encoded and decoded by kafka-python's classes.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from typing import Any, Final

from kafka.errors import KafkaError, for_code
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from tidemill.features.errors import (
    BrokerUnreachable,
    ClientCertificateNeeded,
    ConfigurationError,
    MechanismNotOffered,
    NotKafka,
    UnknownBrokerHost,
    UntrustedCertificate,
    WrongCredentials,
)
from tidemill.pipelines.io.kafka.connection import Connection, Sasl, Tls
from tidemill.pipelines.io.kafka.quiet_logs import hide_what_is_sent

_TLS_ALERT: Final = b"\x15\x03"
_CHUNK: Final = 65_536
_LARGEST: Final = 16 * 1024 * 1024
_UNSUPPORTED_VERSION: Final = 35
_UNSUPPORTED_MECHANISM: Final = 33
_ILLEGAL_SASL_STATE: Final = 34


class Wire:
    """An open connection on which requests have been agreed, and the user has logged in.

    Args:
        host: Name or address of the broker.
        port: Its port.
        connection: How to connect.
        deadline_s: The instant of ``time.monotonic`` when all of it must be done.

    Raises:
        BrokerError: One of its classes for each way to fail.
        ConfigurationError: Our own certificate or the file of authorities cannot be used.
    """

    def __init__(self, host: str, port: int, connection: Connection, deadline_s: float) -> None:
        self.place = f"{host}:{port}"
        self._address = (host, port)
        self._connection = connection
        self._deadline_s = deadline_s
        self._protocol = KafkaProtocol(
            client_id=connection.client_id, receive_message_max_bytes=_LARGEST
        )
        self._answered = False
        self._socket: socket.socket = connect(host, port, deadline_s)
        try:
            if connection.tls is not None:
                self._agree_on_tls(connection.tls)
            self._versions = self._agree_on_versions()
            if connection.sasl is not None:
                self._log_in(connection.sasl)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def ask(self, request: Any) -> Any:
        """Send a request of kafka-python's and return its response.

        Raises:
            BrokerError: The broker closes the connection, does not answer in time, or answers
                something that is not Kafka's.
        """
        if request.API_VERSION is None:
            low, high = self._versions.get(request.API_KEY, (0, -1))
            version = min(high, request.max_version)
            if version < low:
                raise NotKafka(
                    f"{self.place}: the broker does not know the request {request.name}; it needs "
                    "Kafka 2.1 or later"
                )
            request.API_VERSION = version
        self._protocol.send_request(request)
        try:
            self._socket.settimeout(self._left_s())
            self._socket.sendall(self._protocol.send_bytes())
            while True:
                self._socket.settimeout(self._left_s())
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise self._closed()
                if not self._answered and data.startswith(_TLS_ALERT):
                    raise self._wants_tls()
                responses = self._protocol.receive_bytes(data)
                self._answered = self._answered or bool(responses)
                if responses:
                    return responses[0][1]
        except TimeoutError:
            raise self._silent() from None
        except ssl.SSLError as error:
            raise self._refused_certificate(error) from None
        except OSError:
            raise self._closed() from None
        except KafkaError as error:
            raise NotKafka(
                f"{self.place}: what listens there does not speak Kafka's protocol ({error}); "
                "correct the port"
            ) from None

    def _left_s(self) -> float:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _agree_on_tls(self, tls: Tls) -> None:
        context = tls_context(tls)
        try:
            self._socket.settimeout(self._left_s())
            self._socket = context.wrap_socket(self._socket, server_hostname=self._address[0])
        except TimeoutError:
            raise self._silent() from None
        except ssl.SSLCertVerificationError as error:
            raise UntrustedCertificate(
                f"{self.place}: the broker's certificate is refused: {error.verify_message}; "
                f"{_REMEDIES.get(error.verify_code, _TRUST)}"
            ) from None
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                raise self._refused_certificate(error) from None
            raise self._speaks_no_tls() from None
        except OSError:
            raise self._speaks_no_tls() from None

    def _agree_on_versions(self) -> dict[int, tuple[int, int]]:
        version = min(3, ApiVersionsRequest.max_version)
        request = ApiVersionsRequest(
            version=version, client_software_name="tidemill", client_software_version="1"
        )
        response = self.ask(request)
        if response.error_code == _UNSUPPORTED_VERSION:
            response = self.ask(ApiVersionsRequest(version=0))
        if response.error_code:
            raise NotKafka(
                f"{self.place}: the broker refuses to name its versions: "
                f"{for_code(response.error_code).__name__}"
            )
        return {key.api_key: (key.min_version, key.max_version) for key in response.api_keys}

    def _log_in(self, sasl: Sasl) -> None:
        name = sasl.mechanism.value
        hide_what_is_sent()
        response = self.ask(SaslHandshakeRequest(mechanism=name, version=1))
        if response.error_code == _ILLEGAL_SASL_STATE:
            raise MechanismNotOffered(
                f"{self.place}: the broker offers no login on this port; connect to its SASL port, "
                "or leave out sasl"
            )
        if response.error_code == _UNSUPPORTED_MECHANISM or name not in response.mechanisms:
            raise MechanismNotOffered(
                f"{self.place}: the broker does not offer the mechanism {name}; it offers "
                f"{', '.join(sorted(response.mechanisms)) or 'none'}"
            )
        mechanism = get_sasl_mechanism(name)(
            sasl_plain_username=sasl.user, sasl_plain_password=sasl.password, sasl_mechanism=name
        )
        while not mechanism.is_done():
            answer = self.ask(SaslAuthenticateRequest(mechanism.auth_bytes(), version=1))
            if answer.error_code:
                raise WrongCredentials(
                    f"{self.place}: the broker refuses the user {sasl.user!r} by {name}; correct "
                    "the user or the password"
                )
            try:
                mechanism.receive(answer.auth_bytes)
            except (ValueError, KeyError):
                raise WrongCredentials(
                    f"{self.place}: the broker does not prove by {name} that it knows the password "
                    f"of {sasl.user!r}; correct the password, or do not trust this broker"
                ) from None

    def _silent(self) -> BrokerUnreachable:
        return BrokerUnreachable(
            f"{self.place}: the port accepts connections, and nobody answers in time: the broker "
            "is starting, overloaded or stopped, or this is not Kafka; try again, or correct the "
            "port"
        )

    def _closed(self) -> NotKafka | WrongCredentials | BrokerUnreachable:
        if not self._answered:
            if self._connection.tls is None and speaks_tls(*self._address, self._deadline_s):
                return self._wants_tls()
            return NotKafka(
                f"{self.place}: the connection is closed at Kafka's first request: this is not a "
                "Kafka broker; correct the port"
            )
        if self._connection.sasl is None:
            return WrongCredentials(
                f"{self.place}: the broker closes the connection of a client that did not log in: "
                "give sasl a mechanism, a user and a password"
            )
        return BrokerUnreachable(f"{self.place}: the broker closed the connection; try again")

    def _wants_tls(self) -> NotKafka:
        return NotKafka(
            f"{self.place}: this port speaks TLS, and the connection is in plain text: give tls, "
            "or correct the port"
        )

    def _speaks_no_tls(self) -> NotKafka:
        return NotKafka(
            f"{self.place}: this port does not speak TLS: leave out tls, or correct the port"
        )

    def _refused_certificate(self, error: ssl.SSLError) -> ClientCertificateNeeded:
        tls = self._connection.tls
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if tls is not None and tls.certificate is not None:
            return ClientCertificateNeeded(
                f"{self.place}: the broker does not accept the certificate {tls.certificate} "
                f"({reason}); give one that it trusts"
            )
        return ClientCertificateNeeded(
            f"{self.place}: the broker asks for a certificate of the client's ({reason}); give "
            "tls a certificate and its key"
        )


_TRUST: Final = "give tls.ca the file of the authority that signed it"
_EXPIRED: Final = "renew it at the broker, or correct this machine's clock"
_ANOTHER_HOST: Final = "connect by a name that it is for, or renew it with this one"
_REMEDIES: Final = {9: _EXPIRED, 10: _EXPIRED, 62: _ANOTHER_HOST, 64: _ANOTHER_HOST}
"""By OpenSSL's codes: not yet valid, expired, another host's name, another address."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return Python's settings for TLS.

    Raises:
        ConfigurationError: A file is no PEM file, or the key does not fit.
    """
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"kafka.tls.ca: {tls.ca} is no PEM file of certificates ({error}); correct it"
        ) from None
    if tls.certificate is not None and tls.key is not None:
        # Without a password OpenSSL would ask for one at the terminal.
        password = tls.key_password or ""
        try:
            context.load_cert_chain(str(tls.certificate), str(tls.key), lambda: password)
        except (ssl.SSLError, OSError):
            raise ConfigurationError(
                f"kafka.tls: the certificate {tls.certificate} cannot be used with the key "
                f"{tls.key}: both must be PEM files that belong together, and key_password must be "
                "what the key is encrypted with"
            ) from None
    return context


def connect(host: str, port: int, deadline_s: float) -> socket.socket:
    """Return a connected socket.

    Raises:
        UnknownBrokerHost: The name has no address.
        BrokerUnreachable: Nobody listens there, or there is no way to it.
    """
    place = f"{host}:{port}"
    failure = "no time was left"
    for family, kind, protocol, _, address in _look_up(host, port, deadline_s):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        made = socket.socket(family, kind, protocol)
        made.settimeout(left_s)
        try:
            made.connect(address)
        except TimeoutError:
            failure = "the connection timed out: the host or a firewall drops it"
        except ConnectionRefusedError:
            failure = "the connection is refused: nobody listens on this port"
        except OSError as error:
            failure = error.strerror or str(error)
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        made.close()
    raise BrokerUnreachable(
        f"{place}: {failure}; start the broker, or correct the host and the port"
    )


def _look_up(host: str, port: int, deadline_s: float) -> list[Any]:
    """Look up a name in a thread: the system's function has no deadline."""
    found: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True, name="kafka-name").start()
    try:
        addresses = found.get(timeout=max(0.0, deadline_s - time.monotonic()))
    except queue.Empty:
        addresses = OSError("the name server does not answer")
    if isinstance(addresses, OSError):
        reason = addresses.strerror or str(addresses)
        raise UnknownBrokerHost(
            f"{host}:{port}: the name {host!r} has no address ({reason}); correct it, or the name "
            "server"
        )
    return addresses


def speaks_tls(host: str, port: int, deadline_s: float) -> bool:
    """Tell whether a port answers a TLS greeting; whom it belongs to is not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect(host, port, deadline_s) as plain:
            plain.settimeout(max(0.01, deadline_s - time.monotonic()))
            with context.wrap_socket(plain):
                return True
    except (OSError, BrokerUnreachable, UnknownBrokerHost):
        return False
