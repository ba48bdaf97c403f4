"""Streams whose workers share no disk with the program: what it gives them, where they meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import EngineChoice
from tidemill.pipelines.engines.exchange_urls import is_address_here, missing_exchange
from tidemill.pipelines.io.exchange.program_end import ProgramEnd, exchange
from tidemill.pipelines.publish.publish import PublishToStore
from tidemill.pipelines.recovery.resume import Start
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.savepoint_files import join_pieces
from tidemill.pipelines.stream.scored_by import ScoredBy
from tidemill.pipelines.telemetry.stream_record import figures_files
from tidemill.pipelines.telemetry.taken_files import write_taken
from tidemill.serving.generations.current import Current
from tidemill.serving.stores.online_places import SqlitePlace
from tidemill.serving.stores.redis_place import RedisPlace

if TYPE_CHECKING:
    from tidemill.pipelines.engines.attempted import Meeting


def local_places(config: Configuration, *, is_here: bool) -> list[str]:
    """Return what workers on other machines would not find, each with what to set instead.

    Topics are read and written by the program, and so are archive and offline store.

    Args:
        config: The configuration.
        is_here: Whether these workers are on this machine after all, in processes that share no
            folder with the program: they reach its addresses, and what is mounted.
    """
    found, store = missing_exchange(config.stream.exchange, is_here=is_here), config.online_store
    if isinstance(store, SqlitePlace):
        found.append(f"the online store, {store.path}, is a file; let it be Redis")
    elif not is_here and isinstance(store, RedisPlace) and is_address_here(store.host):
        found.append(
            f"the online store, {store.host}:{store.port}, is of this machine; name one that they "
            "reach"
        )
    return found


def check_exchange(config: Configuration, choice: EngineChoice, say: Callable[[str], None]) -> None:
    """Check that an exchange which the configuration names can be used, before a stream begins.

    Args:
        config: The configuration.
        choice: The engine.
        say: Says that the engine leaves the exchange unused, because it has no workers elsewhere.

    Raises:
        ConfigurationError: The online store is a file, which workers elsewhere do not have.
    """
    if config.stream.exchange is None:
        return
    if not choice.has_workers:
        say(f"stream.exchange is not used: the engine {choice.name!r} has no workers elsewhere")
    elif isinstance(config.online_store, SqlitePlace):
        raise ConfigurationError(
            "stream.exchange: workers that share no disk with this program do not reach the online "
            f"store {config.online_store.path}; let online_store be Redis, or leave out the "
            "exchange"
        )


def meeting_of(config: Configuration, current: Current, choice: EngineChoice) -> Meeting | None:
    """Return what opens an exchange for a job of a name.

    Args:
        config: The configuration; `check_exchange` has passed it.
        current: The folders of the stream.
        choice: The engine.

    Returns:
        None if the configuration names no exchange, or the engine has no workers elsewhere.
    """
    if config.stream.exchange is None or not choice.has_workers:
        return None
    figures = figures_files(current.folder).folder
    writes = current.stream_folder / paths.SAVEPOINTS, figures
    id_, taken = root_id(config.root), partial(write_taken, figures)
    return partial(exchange, config.stream.exchange, config.root, id_, writes, taken, join_pieces)


def meeting_at(
    end: ProgramEnd, featurize: FeaturizeOptions, start: Start, bundles: Sequence[ScoredBy]
) -> FeaturizeOptions:
    """Give workers what they begin with; return the options with which they meet this program.

    Args:
        end: The program's end of the exchange.
        featurize: The options of a process that shares its disk.
        start: The start of the run.
        bundles: The bundles that score; none for a project without a model.

    Raises:
        ExchangeError: It cannot be given.
    """
    end.give(start.folder)
    for folder in {one.bundle: None for one in bundles}:
        end.give(folder)
    figures = replace(featurize.figures, exchange=end.place)
    store = featurize.store
    if isinstance(store, PublishToStore):
        store = replace(store, figures=figures)
    return replace(featurize, figures=figures, store=store, exchange=end.place)
