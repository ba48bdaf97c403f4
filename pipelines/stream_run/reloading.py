"""Live settings: what a stream that runs takes over of its file, without a restart.

The promises:

* Only `config.live_settings.LIVE_KEYS` are taken over. Whatever else differs is named, and waits.
* A file that cannot be used changes nothing: the error is logged, and the stream goes on.
* The file is read when somebody asks (`telemetry.settings_record`), and at no other time: one that
  is being edited is never taken over by half.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tidemill.features.errors import TidemillError
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.config.live_settings import changes, with_live_values
from tidemill.pipelines.run.run_record import for_existing_run
from tidemill.pipelines.telemetry.events import log_event
from tidemill.pipelines.telemetry.log_level import set_level
from tidemill.pipelines.telemetry.run_id import RUN_ID
from tidemill.pipelines.telemetry.settings_record import SettingsRecord, mailbox

_log: Final = logging.getLogger(__name__)


class LiveSettings:
    """The configuration of a stream that runs, whose live values may change.

    Args:
        config: The configuration that it was started with.

    Attributes:
        config: The same, with the live values of now. Threads read it whenever they use a value.
    """

    def __init__(self, config: Configuration) -> None:
        self.config = config

    def reload(self, number: int) -> SettingsRecord:
        """Read the file again, and take over what can be.

        Args:
            number: The number of the request.

        Returns:
            What was done.
        """
        at_us = time.time_ns() // 1_000
        try:
            now = for_existing_run(load(self.config.path, root=self.config.root))
        except TidemillError as error:
            said = f"{type(error).__name__}: {error}"
            log_event(
                _log,
                "reload",
                f"the stream goes on with the settings that it has: {said}",
                level=logging.WARNING,
                error=said,
            )
            return SettingsRecord(number, RUN_ID, at_us, error=said)
        found = changes(self.config, now)
        self.config = with_live_values(self.config, now)
        set_level(self.config.logging.level, self.config.logging.format)
        taken = [str(one) for one in found if one.is_live]
        waiting = [str(one) for one in found if not one.is_live]
        took = f"taken over: {'; '.join(taken) or 'nothing'}"
        waits = f"; waiting for a restart: {'; '.join(waiting)}" if waiting else ""
        log_event(
            _log,
            "reload",
            f"{self.config.path} was read again: {took}{waits}",
            level=logging.WARNING,  # a person has asked, and looks at the terminal
            taken=taken,
            waiting=waiting,
        )
        return SettingsRecord(number, RUN_ID, at_us, taken, waiting)


def _reloaded(settings: LiveSettings, number: int) -> SettingsRecord:
    """Reload, and answer whoever has asked also where that fails as nobody has foreseen."""
    try:
        return settings.reload(number)
    except Exception as error:  # noqa: BLE001 - it is logged, and told whoever has asked
        _log.exception("the stream goes on with the settings that it has")
        said = f"{type(error).__name__}: {error}"
        return SettingsRecord(number, RUN_ID, time.time_ns() // 1_000, error=said)


@contextmanager
def live_settings(config: Configuration, say: Callable[[str], None]) -> Iterator[LiveSettings]:
    """Read the file again whenever somebody asks, while the block runs the stream.

    Args:
        config: The configuration, with the folders of the generation.
        say: Tells a person what cannot be answered.
    """
    settings, generation = LiveSettings(config), config.current.folder

    def take(request: Mapping[str, Any]) -> None:
        _reloaded(settings, request["number"]).write(generation)

    # Also a request that came since the file was read, at this start, is answered.
    with mailbox(generation).taken_up("reloading", take, say):
        yield settings
