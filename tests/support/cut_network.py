"""A Redis in a network namespace of its own, whose cable can be cut; only root can make one.

A pair of virtual devices is the cable. Cutting it takes the end in the namespace down: packets of
both directions vanish, and nobody is told.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.redis_server import RedisServer

_PREFIX: Final = "10.213"


class Network:
    """A namespace, and the cable that leads to it.

    Attributes:
        name: The namespace's name.
        address: Its address, as seen from here.
    """

    def __init__(self) -> None:
        number = os.getpid() % 16_384
        self.name = f"tidemill-{os.getpid()}"
        self._here, self._there = f"tm{number}h", f"tm{number}t"
        net, host = divmod(4 * number, 256)
        here, self.address = f"{_PREFIX}.{net}.{host + 1}", f"{_PREFIX}.{net}.{host + 2}"
        _ip("netns", "add", self.name)
        _ip("link", "add", self._here, "type", "veth", "peer", "name", self._there)
        _ip("link", "set", self._there, "netns", self.name)
        _ip("addr", "add", f"{here}/30", "dev", self._here)
        _ip("link", "set", self._here, "up")
        self._inside("addr", "add", f"{self.address}/30", "dev", self._there)
        self._inside("link", "set", "lo", "up")
        self.mend()

    def cut(self) -> None:
        """Let no packet pass."""
        self._inside("link", "set", self._there, "down")

    def mend(self) -> None:
        """Let packets pass again."""
        self._inside("link", "set", self._there, "up")

    def close(self) -> None:
        """Remove the namespace, and with it the cable."""
        _ip("netns", "del", self.name)

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)


class DistantRedis(RedisServer):
    """A Redis at the other end of a cable.

    Args:
        folder: Where its data and its log are.
        options: Its options.
        network: Where it runs.
    """

    def __init__(self, folder: Path, options: dict[str, str], network: Network) -> None:
        super().__init__(folder, {"protected-mode": "no", **options})
        self.host = network.address
        self._network = network

    def _command(self) -> list[str]:
        return ["ip", "netns", "exec", self._network.name, *super()._command()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
