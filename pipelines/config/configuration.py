"""The configuration: the YAML file names data and stores, the project defines the features.

`load` is strict (`pipelines.config.strict_yaml`): an unknown key, a duplicate key or a value of
another type is a `ConfigurationError` that names file, line, key and the nearest known key.
Promises of a loaded configuration:

* The project is imported and is a `Project`; the configuration has exactly the sources it needs.
* Every path is absolute. Relative paths start in the YAML file's folder, those of the stores and
  the registry in the root; paths that start with ``package://`` stay as they are.
* Times and durations are UTC microseconds.

Environment variables and ``~`` are not substituted. Only options of the command line (``--root``,
``--speed``...) override the file.

```yaml
project: project:project        # module:attribute; modules beside this file are found
root: ./run                     # where everything is written
shards: 2                       # optional; fixed number of shards of each view
sources:                        # one for each event stream and one for the request, by name
  orders:
    files: [events/orders-*.csv]  # `pipelines.config.source_section` has the other keys
splits:                         # where training, evaluation and stream end
  train_until: 2026-02-01T00:00:00Z
  evaluate_until: 2026-02-15T00:00:00Z
  stream_until: 2026-03-01T00:00:00Z
sample: {train_until: ..., evaluate_until: ..., stream_until: ...}  # optional: of a short run
training: {epochs: 4, batch_size: 1024, learning_rate: 0.001, seeds: 5, seed: 1, rate_groups: []}
online_store: {type: sqlite, path: online.db}  # `pipelines.config.online_section`
offline_store: {type: parquet}  # optional (`pipelines.config.offline_section`)
registry: {type: file, path: registry.db}  # optional (`pipelines.config.registry_section`)
stream: {engine: fnapi, mode: exact, poll_rows: 4096, speed: null, answer_within: 5m,
         gap_batches: 1000, joiners: 1, readers: 1, inference: {}, exchange: null}
predictions: {kafka: {...}}     # optional: also to a topic (`pipelines.config.sink_section`)
rejected: {kafka: {...}}        # optional: rejected records likewise
archive: {folder: archive}      # optional: rows of topics (`pipelines.config.archive_section`)
metrics: {listen: "localhost:9464"}  # optional (`pipelines.config.telemetry_section`)
logging: {format: text}         # optional
tracing: {endpoint: ...}        # optional
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tidemill.features.contract import LATEST_EVENT, MINUTE, SECOND
from tidemill.features.definitions import Project
from tidemill.features.errors import ConfigurationError, nearest
from tidemill.pipelines.config.archive_section import Archive, read_archive
from tidemill.pipelines.config.choices import ENGINES, MODES
from tidemill.pipelines.config.inference_section import InferenceOptions, read_inference
from tidemill.pipelines.config.offline_section import offline_place
from tidemill.pipelines.config.online_section import (
    GIVE_UP_AFTER_US,
    give_up_after_us,
    online_place,
)
from tidemill.pipelines.config.project_import import import_attribute
from tidemill.pipelines.config.registry_section import registry_place
from tidemill.pipelines.config.sink_section import (
    PREDICTIONS,
    REJECTED,
    KafkaSink,
    check_not_read,
    read_sinks,
)
from tidemill.pipelines.config.source_section import SOURCE_KEYS, Source, read_source
from tidemill.pipelines.config.strict_yaml import Section, Value, or_null, read_file
from tidemill.pipelines.config.telemetry_section import (
    LogOptions,
    MetricsPage,
    TraceOptions,
    read_logging,
    read_metrics,
    read_tracing,
)
from tidemill.serving.generations.current import Current, read_current
from tidemill.serving.stores.offline_places import OfflinePlace, ParquetPlace
from tidemill.serving.stores.online_places import Clock, FeastPlace, OnlinePlace
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import RegistryPlace

KEYS: Final = (
    "project", "root", "shards", "sources", "splits", "sample", "training", "online_store",
    "offline_store", "registry", "stream", "predictions", "rejected", "archive",
    "metrics", "logging", "tracing",
)  # fmt: skip
SPLIT_KEYS: Final = ("train_until", "evaluate_until", "stream_until")
TRAINING_KEYS: Final = {
    "epochs": Value.count,
    "batch_size": Value.count,
    "learning_rate": Value.positive,
    "seeds": Value.count,
    "seed": Value.whole,
    "rate_groups": Value.texts,
    "keep_bundles": Value.count,
}
STREAM_KEYS: Final = {
    "engine": or_null(lambda value: value.one_of(ENGINES)),
    "mode": lambda value: value.one_of(MODES),
    "poll_rows": Value.count,
    "speed": or_null(Value.positive),
    "answer_within": Value.duration_us,
    "savepoint_every": Value.duration_us,
    "keep_live": Value.duration_us,
    "gap_batches": Value.count,
    "joiners": Value.count,
    "readers": Value.count,
    "inference": read_inference,
    "exchange": or_null(Value.text),
}


@dataclass(frozen=True)
class Splits:
    """Where training, evaluation and the stream end; the ends come in order.

    Attributes:
        train_until_us: The model is trained on the requests before this instant.
        evaluate_until_us: It is evaluated on those from there to this instant, at which the stream
            begins.
        stream_until_us: The stream ends before the rows received from this instant on; of a
            project with a topic, which has no end, `LATEST_EVENT`.
    """

    train_until_us: int
    evaluate_until_us: int
    stream_until_us: int


@dataclass(frozen=True)
class Training:
    """How the model is trained.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Rows of a step.
        learning_rate: Passed to the project's ``model`` function.
        seeds: How many models are trained and evaluated; the first is the bundle's.
        seed: The seed of the first model; each further model adds one.
        rate_groups: Model inputs that the rate baseline groups by, the coarsest first.
        keep_bundles: How many of the newest bundles stay when another one is made, beside those
            that predictions name; by default all stay.
    """

    epochs: int = 4
    batch_size: int = 1024
    learning_rate: float = 0.001
    seeds: int = 5
    seed: int = 1
    rate_groups: tuple[str, ...] = ()
    keep_bundles: int | None = None

    def __post_init__(self) -> None:
        if self.keep_bundles is not None and self.keep_bundles < 2:
            raise ConfigurationError(
                f"training.keep_bundles is {self.keep_bundles}, expected at least 2: a stream may "
                "still be loading the one before the newest"
            )
        if min(self.epochs, self.batch_size, self.seeds) < 1:
            raise ConfigurationError(
                "training takes at least one epoch, one row a batch and one seed, found "
                f"{self.epochs}, {self.batch_size} and {self.seeds}"
            )

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds, ``seed`` first."""
        return tuple(range(self.seed, self.seed + self.seeds))


@dataclass(frozen=True)
class StreamOptions:
    """How the stream runs.

    Attributes:
        engine: ``fnapi``, ``prism``, ``flink`` or ``dataflow``; None is Prism if its binary is
            built, else FnApiRunner.
        mode: ``exact`` or ``eager``.
        poll_rows: The most rows that one poll of a source reads.
        speed: How many times faster than real time a replay runs; None is as fast as it can.
        answer_within_us: How long a request waits for the answers of its views, in microseconds.
        savepoint_every_us: How often a live stream keeps its state, in microseconds: a stream that
            is killed repeats what came since, and a stream goes on meanwhile.
        keep_live_us: Live rows that were received so long before the last one are removed from the
            live log once the builds have them, in microseconds; by default they stay in both.
        gap_batches: The number of batches after which an open gap in a partition is an error.
        joiners: The number of shards of the stage that joins the answers of views, scores requests
            and writes predictions: the requests of a partition go to the shard of its number modulo
            this one. A stream keeps the number that it was begun with.
        readers: The number of processes that read topics; each reads a share of the partitions of
            every topic. There are no more than the largest topic has partitions.
        inference: What the step that scores requests needs of a machine.
        exchange: The URL of a folder in object storage, or of one that is mounted everywhere,
            through which workers of an engine of several processes (Flink, Dataflow) meet the
            program, also those of `tidemill backfill` and `train`; None if they share its disk
            (`pipelines.io.exchange`). FnApiRunner and Prism have no such workers: there it is not
            used, and `tidemill stream` says so once.
    """

    engine: str | None = None
    mode: str = "exact"
    poll_rows: int = 4096
    speed: float | None = None
    answer_within_us: int = 5 * MINUTE
    savepoint_every_us: int = 10 * SECOND
    keep_live_us: int | None = None
    gap_batches: int = 1000
    joiners: int = 1
    readers: int = 1
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    exchange: str | None = None


@dataclass(frozen=True)
class Configuration:
    """A loaded YAML file.

    Attributes:
        path: The file, absolute.
        project_name: The project's ``module:attribute``.
        project: The project.
        root: Where everything is written, absolute.
        shards: The fixed number of shards of each view.
        sources: By the name of the stream or the request.
        splits: Where training, evaluation and stream end.
        sample: The splits of a short run on the same data, if the file has any.
        read_until_us: Rows that were received at this instant or later are not read; None reads
            all rows. Set by a run on the sample, not by a key of the file.
        training: How the model is trained.
        online_store: Where the newest features are served from.
        give_up_after_us: How long the online store may be unavailable before the stream fails.
        offline_store: Where past features are read from.
        registry: Where the definitions are registered; None is a file below the root.
        stream: How the stream runs.
        predictions: The topic that predictions are written to, besides files; None for none.
        rejected: The topic that the stream's rejected records are written to, likewise.
        archive: Where the rows that are read of topics are kept as Parquet; None for nowhere.
        metrics: Where a stream serves its figures for Prometheus; None for nowhere.
        logging: How the log is written.
        tracing: Where a stream sends its traces; None for nowhere.
        pinned: The folders that `pin` has found; None looks them up at every use.
    """

    path: Path
    project_name: str
    project: Project
    root: Path
    shards: int
    sources: Mapping[str, Source]
    splits: Splits
    online_store: OnlinePlace
    training: Training = field(default_factory=Training)
    stream: StreamOptions = field(default_factory=StreamOptions)
    sample: Splits | None = None
    read_until_us: int | None = None
    offline_store: OfflinePlace = field(default_factory=ParquetPlace)
    registry: RegistryPlace | None = None
    give_up_after_us: int = GIVE_UP_AFTER_US
    predictions: KafkaSink | None = None
    rejected: KafkaSink | None = None
    archive: Archive | None = None
    metrics: MetricsPage | None = None
    logging: LogOptions = field(default_factory=LogOptions)
    tracing: TraceOptions | None = None
    pinned: Current | None = None

    @property
    def current(self) -> Current:
        """The root's current folders.

        Raises:
            StateMismatch: There are none.
            StateError: Another version wrote them.
        """
        return read_current(self.root) if self.pinned is None else self.pinned

    def pin(self) -> Configuration:
        """Return the same configuration with the folders of this instant, for a whole stage."""
        return replace(self, pinned=read_current(self.root))

    @property
    def clock(self) -> Clock:
        """The clock by which readers judge the age of what a stream of these sources publishes.

        It is the wall clock as soon as one source is live: nothing else says then how old a
        frontier is.
        """
        return "wall" if self.is_live else "replay"

    @property
    def is_live(self) -> bool:
        """Whether a source goes on in a topic, so that the stream has no end."""
        return any(source.is_live for source in self.sources.values())

    @property
    def sinks(self) -> dict[str, KafkaSink]:
        """The topics that the stream writes to, by the section that names them."""
        sections = {PREDICTIONS: self.predictions, REJECTED: self.rejected}
        return {name: sink for name, sink in sections.items() if sink is not None}

    @property
    def places(self) -> StorePlaces:
        """Where the project's stores are."""
        return StorePlaces.below(
            self.root,
            online=self.online_store,
            registry=self.registry,
            offline=self.offline_store,
        )


def load(path: Path | str, *, root: Path | str | None = None) -> Configuration:
    """Load a YAML file and import its project.

    Args:
        path: The file; relative to the working directory.
        root: Overrides the file's ``root``; relative to the working directory.

    Raises:
        ConfigurationError: The file or what it refers to cannot be used.
    """
    path = Path(path)
    top = read_file(path).section(KEYS)
    folder = path.absolute().parent
    # Import the project last, so that errors in the file show without its imports.
    where = folder / top.required("root").text()
    where = Path(root).absolute() if root is not None else where
    sources = _sections(top.required("sources"))
    is_live = any("kafka" in section.values for section in sources.values())
    splits = _splits(top.required("splits"), is_live=is_live)
    sample = top.optional("sample", or_null(lambda v: _splits(v, is_live=is_live)), None)
    training = top.optional("training", _training, Training())
    registry = registry_place(top, where)
    online_store = online_place(top, folder, where)
    if isinstance(online_store, FeastPlace):
        online_store = replace(online_store, registry=registry)
    offline_store = offline_place(top, where)
    stream = top.optional("stream", _stream, StreamOptions())
    if is_live and stream.speed is not None:
        raise (
            top.values["stream"]
            .section()
            .values["speed"]
            .wrong("a stream from topics has no speed: it reads what comes; remove the key")
        )
    sinks = read_sinks(top, folder)
    archive = top.optional("archive", or_null(lambda value: read_archive(value, folder)), None)
    if archive is not None and not is_live:
        raise top.values["archive"].wrong(
            "keeps the rows of topics, and no source has one; name a source's 'kafka', or remove "
            "the key"
        )
    shards = top.optional("shards", Value.count, 2)
    reference = top.required("project")
    project = _project(reference, folder)
    _check_names(top.required("sources"), sources, project)
    if "training" in top.values:
        _check_rate_groups(top.values["training"], training, project)
    read = {name: read_source(project, name, part, folder) for name, part in sources.items()}
    check_not_read(top, sinks, {name: source.kafka for name, source in read.items()})
    return Configuration(
        path=path.absolute(),
        project_name=reference.text(),
        project=project,
        root=where,
        shards=shards,
        sources=read,
        splits=splits,
        training=training,
        online_store=online_store,
        offline_store=offline_store,
        give_up_after_us=give_up_after_us(top),
        registry=registry,
        stream=stream,
        sample=sample,
        predictions=sinks.get(PREDICTIONS),
        rejected=sinks.get(REJECTED),
        archive=archive,
        metrics=read_metrics(top),
        logging=read_logging(top),
        tracing=read_tracing(top),
    )


def _project(value: Value, folder: Path) -> Project:
    project = import_attribute(value, folder)
    if not isinstance(project, Project):
        raise value.wrong(
            f"{value.text()} is a {type(project).__name__}, expected a features.Project"
        )
    return project


def _sections(value: Value) -> dict[str, Section]:
    return {name: source.section(SOURCE_KEYS) for name, source in value.section().values.items()}


def _check_names(value: Value, sources: Mapping[str, Section], project: Project) -> None:
    needed = [*(stream.name for stream in project.streams), project.request.name]
    for name, section in sources.items():
        if name not in needed:
            raise section.value.wrong(
                f"project {project.name!r} has neither a stream nor a request {name!r}; "
                f"{nearest(name, needed)}"
            )
    if missing := [name for name in needed if name not in sources]:
        raise value.wrong(
            f"no source for {', '.join(map(repr, missing))}; project {project.name!r} needs one "
            f"for each of {', '.join(needed)}"
        )


def _splits(value: Value, *, is_live: bool) -> Splits:
    section = value.section(SPLIT_KEYS)
    if is_live and "stream_until" in section.values:
        raise section.values["stream_until"].wrong(
            "a stream from topics has no end; remove the key, and stop it with Ctrl-C or SIGTERM"
        )
    names = SPLIT_KEYS[:2] if is_live else SPLIT_KEYS
    times = [section.required(name).instant_us() for name in names]
    times += [] if len(times) == len(SPLIT_KEYS) else [LATEST_EVENT]
    for before, name in ((0, "evaluate_until"), (1, "stream_until")):
        if times[before + 1] <= times[before]:
            raise section.values[name].wrong(f"must be after {SPLIT_KEYS[before]}")
    return Splits(*times)


def _training(value: Value) -> Training:
    return Training(**value.section(TRAINING_KEYS).read(TRAINING_KEYS))


def _check_rate_groups(value: Value, training: Training, project: Project) -> None:
    known = [*project.request.inputs, *(column.name for column in project.columns)]
    for name in training.rate_groups:
        if name not in known:
            groups = value.section().values["rate_groups"]
            raise groups.wrong(f"{name!r} is no model input; {nearest(name, known)}")


def _stream(value: Value) -> StreamOptions:
    return StreamOptions(**value.section(STREAM_KEYS).read(STREAM_KEYS))
