"""A SavedModel that is called with batches: in few shapes, and without the rows that it refuses.

The promises:

* A call has one of a few numbers of rows (`buckets`), padded by repeating the last row, so that
  nothing is compiled or traced while rows wait: each was called once when the model was loaded.
  Last bits depend on the rows of a call and on a row's place in it, so both are returned.
* A row on which the graph fails is rejected alone. The others keep their places in a call of the
  same shape, the rejected ones hold a copy of another row, so the others' bytes are what they are
  without it. To find ``b`` bad rows of ``n`` takes at most ``2 b log2(n) + 2`` calls.
* A batch of another type than the signature's is an error, and no row's fault.
* Where memory runs out, a batch is cut into halves, and calls have fewer rows from then on.
* A call that takes longer than ``timeout_s`` counts as failed after ``tries``. Its thread goes on,
  since TensorFlow cannot be interrupted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.errors import InputError, ModelError, nearest
from tidemill.serving.models.buckets import BUCKETS
from tidemill.serving.models.calls import NO_MEMORY, Calls, Failure, InPlaces, said
from tidemill.serving.models.feed import NOT_A_NUMBER, Feed, Rejection
from tidemill.serving.models.outputs import column_of, schema_of
from tidemill.serving.models.signature import Signature
from tidemill.serving.models.tensorflow_start import compiles_by_itself, load_tensorflow

SERVING: Final = "serving_default"
"""The signature that a SavedModel is served by, unless another one is named."""

_SCHEMAS: Final = 64
"""So many schemas of batches are remembered."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What is done about rows and calls that fail.

    Attributes:
        timeout_s: After how many seconds a call has failed; None for never.
        tries: How often a call is made that does not end in time.
        no_nan: The inputs and outputs, by name, in which NaN rejects a row.
        round_numbers: Whether numbers may be rounded to the narrower float of an input.
    """

    timeout_s: float | None = None
    tries: int = 2
    no_nan: Collection[str] = field(default=())
    round_numbers: bool = False


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        outputs: The outputs, one row for each of the batch; null where a row was rejected.
        rejected: The rejected rows, ascending.
        padded_rows: The rows of the call that made each row's outputs, int32 ``(rows,)``.
        call_rows: The place of each row in that call, int32 ``(rows,)``.
    """

    outputs: pa.RecordBatch
    rejected: tuple[Rejection, ...]
    padded_rows: npt.NDArray[np.int32]
    call_rows: npt.NDArray[np.int32]


class Rows(Protocol):
    """Rows that a feed makes tensors of: a record batch, or what it has made of one before."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""

    def slice(self, offset: int, length: int, /) -> Self:
        """Return some rows that follow each other."""

    def take(self, places: Any, /) -> Self:
        """Return the rows at some places."""


class RowFeed(Protocol):
    """Makes tensors of rows; `Feed` does so of record batches."""

    def unusable(self, batch: Any, /) -> Collection[Rejection]:
        """Return the rows that cannot be inputs."""

    def tensors(self, batch: Any, rows: int, /) -> dict[str, Any]:
        """Return the tensors of a batch, padded to ``rows`` rows by repeating the last one."""


class SavedModel:
    """A SavedModel in memory, with one of its signatures; threads may share it.

    Args:
        directory: Where it is.
        signature: The name of the signature.
        buckets: The numbers of rows that calls have, ascending.
        limits: What is done about failures.
        warm_up: Rows of which one is called with once in each bucket. None for zeros and empty
            strings, and if it does not take these, or has inputs that may be ragged or sparse,
            for those of the first batch.
        feed: Makes tensors of what `call` is given; None for one that takes columns. A model with a
            feed is warm once `warm` was called, or else before its first batch.
        beside: The same SavedModel with another signature: they share what is in memory.
        xla: Whether XLA compiles the signature, once for each bucket. Last bits differ from those
            without.

    Raises:
        ModelError: There is no SavedModel, or no such signature; it takes no row of `warm_up`;
            `limits` name what is neither an input nor an output; XLA cannot compile it; or
            TensorFlow compiles by itself in this process.
    """

    def __init__(
        self,
        directory: Path | str,
        signature: str = SERVING,
        *,
        buckets: Sequence[int] = BUCKETS,
        limits: Limits | None = None,
        warm_up: pa.RecordBatch | None = None,
        feed: RowFeed | None = None,
        beside: SavedModel | None = None,
        xla: bool = False,
    ) -> None:
        if not buckets or list(buckets) != sorted({*buckets}) or buckets[0] < 1:
            raise ModelError(f"buckets are ascending numbers of rows, found {list(buckets)}")
        self.directory = Path(directory)
        # Keras 3 loads no SavedModels; TensorFlow does. The loaded object owns the variables.
        self._loaded: Any = _load(self.directory) if beside is None else beside._loaded
        self._function = _function(self._loaded, self.directory, signature)
        self.signature = Signature.of(signature, self._function)
        self.limits = limits or Limits()
        known = {*(spec.name for spec in self.signature.inputs), *self.signature.outputs}
        if unknown := sorted({*self.limits.no_nan} - known):
            raise ModelError(
                f"the signature {signature!r} of {directory} has no input or output "
                f"{unknown[0]!r}, which no_nan names; {nearest(unknown[0], known)}"
            )
        self._buckets, self._most = tuple(buckets), buckets[-1]
        self._own_feed, self._feeds = feed, dict[pa.Schema, Feed]()
        self._lock = threading.Lock()
        self._calls = Calls(self.limits.timeout_s, self.limits.tries)
        self._schema = schema_of(self._function.structured_outputs)
        if xla:
            self._function = _compiled(self._function, self.directory, self.signature)
        self._is_warm, self._refused = False, ""
        if warm_up is not None:
            if not self.warm(warm_up):
                raise ModelError(
                    f"the signature {signature!r} of {directory} takes no row of warm_up: "
                    f"{self._refused or 'each has a null'}"
                )
        elif feed is None and (zeros := _zeros(self.signature)) is not None:
            is_warm = self.warm(zeros)
            if xla and not is_warm:
                raise ModelError(
                    f"XLA does not compile the signature {signature!r} of {directory}, or it takes "
                    f"no zeros: {self._refused}"
                )

    @property
    def concrete_function(self) -> Any:
        """TensorFlow's function of the signature: from tensors by name to tensors by name."""
        return self._function

    @property
    def outputs(self) -> pa.Schema | None:
        """The schema of the outputs, by ascending name.

        None where the signature does not tell it, until a call was made.
        """
        return self._schema

    def call(self, batch: Rows, parts: Sequence[int] | None = None) -> Outcome:
        """Call the model with a batch.

        Args:
            batch: The inputs by name, any number of rows; further columns are ignored. Of a model
                with a feed of its own, what that takes.
            parts: The rows of each part of the batch, which has calls of its own, as if it were
                alone: last bits may depend on a row's place in a call. None is one part.

        Raises:
            InputError: A column is missing, or has a type that the signature does not take.
            ModelError: An output has not one row for each of the batch.
        """
        feed = self._feed(batch)
        if not self._is_warm:
            self.warm(batch)
        parts = [batch.num_rows] if parts is None else parts
        if sum(parts) != batch.num_rows:
            raise InputError(f"parts of {sum(parts)} rows are not a batch of {batch.num_rows}")
        made = []
        start = 0
        for part in parts:
            stop = start + part
            while start < stop:
                rows = min(self._most, stop - start)
                whole = start == 0 and rows == batch.num_rows
                some = batch if whole else batch.slice(start, rows)
                try:
                    made.append(self._call_once(feed, some, start))
                except _NoMemory as error:
                    self._lower(rows, error)
                    continue
                start += rows
        return self._joined(made)

    def warm(self, rows: Rows) -> bool:
        """Call the model once in each bucket, with the first row that it takes.

        Args:
            rows: The inputs.

        Returns:
            Whether it has taken one.

        Raises:
            InputError, ModelError: As for `call`.
        """
        feed = self._feed(rows)
        unusable = {one.row for one in feed.unusable(rows)}
        for row in range(rows.num_rows):
            if row in unusable:
                continue
            made: dict[str, pa.Array] | Failure = {}
            try:
                for padded in self._buckets:
                    made = self._run(feed, rows.slice(row, 1), padded)
                    if isinstance(made, Failure):
                        break
            except _NoMemory as error:
                self._lower(padded, error)
            if isinstance(made, Failure):
                self._refused = made.message
                _log.info("%s refuses a row of the warm-up: %s", self.directory, made.message)
                continue
            with self._lock:
                self._schema = pa.schema([pa.field(n, one.type) for n, one in made.items()])
                self._is_warm = True
            return True
        return False

    def bucket(self, rows: int) -> int:
        """Return the rows of a call with so many rows, at most as many as the largest bucket."""
        return next(size for size in self._buckets if size >= rows)

    def _feed(self, batch: Any) -> RowFeed:
        if self._own_feed is not None:
            return self._own_feed
        schema = batch.schema
        found = self._feeds.get(schema)
        if found is None:
            if len(self._feeds) >= _SCHEMAS:
                self._feeds.clear()
            limits = self.limits
            found = Feed(self.signature.bind(schema), limits.round_numbers, limits.no_nan)
            self._feeds[schema] = found
        return found

    def _call_once(self, feed: RowFeed, batch: Rows, start: int) -> Outcome:
        """Call the model with as many rows as a call may have."""
        rows, padded = batch.num_rows, self.bucket(batch.num_rows)
        rejected = {one.row: one for one in feed.unusable(batch)}
        outputs: dict[str, pa.Array] = {}
        if not rejected:
            made = self._run(feed, batch, padded)
            if isinstance(made, Failure):
                outputs, rejected = self._without_bad(feed, batch, padded, {}, made)
            else:
                outputs = made
        elif len(rejected) < rows:
            outputs, rejected = self._without_bad(feed, batch, padded, rejected, None)
        for one in self._not_numbers(outputs):
            rejected.setdefault(one.row, one)
        return Outcome(
            self._columns(outputs, rows, rejected),
            tuple(rejected[row]._replace(row=start + row) for row in sorted(rejected)),
            np.full(rows, padded, np.int32),
            np.arange(rows, dtype=np.int32),
        )

    def _without_bad(
        self,
        feed: RowFeed,
        batch: Rows,
        padded: int,
        rejected: dict[int, Rejection],
        why: Failure | None,
    ) -> tuple[dict[str, pa.Array], dict[int, Rejection]]:
        """Call the model without the rows that it refuses.

        Args:
            feed: Makes the tensors.
            batch: The rows.
            padded: The rows of the call.
            rejected: Those that are known to be bad.
            why: How a call with all others has failed; None if there was none.

        Returns:
            The outputs, which count for the good rows only, and all bad rows.
        """
        call = InPlaces(partial(self._run, feed), batch, padded)
        good = np.setdiff1d(np.arange(batch.num_rows), [*rejected])
        made = call.with_rows(good) if why is None else why
        if isinstance(made, Failure):
            found = call.bad_rows(good, made)
            rejected = rejected | {one.row: one for one in found}
            good = np.setdiff1d(good, [one.row for one in found])
            made = call.with_rows(good) if len(good) else {}
        if isinstance(made, Failure):
            # The rows were good in other calls: nobody can tell which of them is to blame.
            raise ModelError(
                f"{self.directory} fails with rows that it took in other calls: {made.message}"
            )
        return made, rejected

    def _columns(
        self, outputs: Mapping[str, pa.Array], rows: int, rejected: Mapping[int, Rejection]
    ) -> pa.RecordBatch:
        """Return the outputs with nulls in the rows that were rejected."""
        if outputs and rejected:
            places = pa.array([None if n in rejected else n for n in range(rows)], pa.int64())
            outputs = {name: column.take(places) for name, column in outputs.items()}
        if outputs:
            return pa.RecordBatch.from_arrays([*outputs.values()], names=[*outputs])
        if self._schema is None:
            raise ModelError(
                f"the signature {self.signature.name!r} of {self.directory} has taken no row yet, "
                "so nobody knows the types of its outputs: give rows that it takes as warm_up"
            )
        return _nulls(self._schema, rows)

    def _not_numbers(self, outputs: Mapping[str, pa.Array]) -> list[Rejection]:
        """Return the rows of which an output is NaN that may not be."""
        out = []
        for name in self.limits.no_nan:
            column = outputs.get(name)
            if column is None:
                continue
            values, width = column, 1
            while pa.types.is_fixed_size_list(values.type):
                width *= values.type.list_size
                values = values.flatten()
            if not pa.types.is_floating(values.type):
                continue
            found = np.isnan(values.to_numpy(zero_copy_only=False))
            if not found.any():
                continue
            said = f"the output {name!r} is NaN"
            bad = np.flatnonzero(found.reshape(len(column), width).any(axis=1))
            out += [Rejection(int(row), NOT_A_NUMBER, said) for row in bad]
        return out

    def _run(self, feed: RowFeed, batch: Rows, padded: int) -> dict[str, pa.Array] | Failure:
        """Make one call of the graph; return the columns of the rows."""
        tensors = feed.tensors(batch, padded)
        found = self._calls.run(lambda: self._function(**tensors))
        if isinstance(found, Failure):
            if found.reason == NO_MEMORY:
                raise _NoMemory(found.message)
            return found
        return {
            name: column_of(name, found[name], padded, batch.num_rows) for name in sorted(found)
        }

    def _lower(self, rows: int, error: Exception) -> None:
        """Make calls of half as many rows from now on."""
        with self._lock:
            smaller = [size for size in self._buckets if size < self.bucket(rows)]
            if not smaller:
                raise ModelError(
                    f"a call with {self._buckets[0]} rows, the fewest, runs out of memory: {error}"
                ) from error
            if smaller[-1] < self._most:
                self._most = smaller[-1]
                _log.warning(
                    "a call of %s runs out of memory: calls have at most %d rows from now on",
                    self.directory,
                    self._most,
                )

    def _joined(self, made: Sequence[Outcome]) -> Outcome:
        if len(made) == 1:
            return made[0]
        if not made:
            none = np.zeros(0, np.int32)
            return Outcome(_nulls(self._schema or pa.schema([]), 0), (), none, none)
        table = pa.Table.from_batches([one.outputs for one in made])
        return Outcome(
            table.combine_chunks().to_batches()[0],
            tuple(found for one in made for found in one.rejected),
            np.concatenate([one.padded_rows for one in made]),
            np.concatenate([one.call_rows for one in made]),
        )


class _NoMemory(Exception):
    """There is no memory for a call of so many rows."""


def _nulls(schema: pa.Schema, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(rows, one.type) for one in schema], schema=schema)


def _load(directory: Path) -> Any:
    """Load a SavedModel."""
    if not (directory / "saved_model.pb").is_file():
        raise ModelError(f"{directory} is no SavedModel: there is no saved_model.pb")
    tf = load_tensorflow()
    if compiles_by_itself():
        raise ModelError(
            "TensorFlow compiles with XLA by itself in this process (tf.config.optimizer.set_jit, "
            "or auto_jit in TF_XLA_FLAGS), and then its first call gives other bytes than those "
            "after it: turn that off; xla=True compiles before the first row"
        )
    try:
        return tf.saved_model.load(str(directory))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ModelError(f"{directory} cannot be loaded as a SavedModel: {said(error)}") from error


def _function(loaded: Any, directory: Path, signature: str) -> Any:
    """Return the function of a signature."""
    signatures = dict(loaded.signatures)
    if signature not in signatures:
        raise ModelError(
            f"{directory} has no signature {signature!r}; {nearest(signature, signatures)}"
        )
    return signatures[signature]


def _compiled(function: Any, directory: Path, signature: Signature) -> Any:
    """Return what XLA makes of a function, when it is first called with a shape."""
    tf = load_tensorflow()
    specs = {spec.name: spec.dtype for spec in signature.inputs}
    specs |= {name: spec.dtype.name for name, spec in function.structured_outputs.items()}
    if texts := sorted(name for name, dtype in specs.items() if dtype == "string"):
        raise ModelError(
            f"XLA compiles no texts, and {texts[0]!r} of the signature {signature.name!r} of "
            f"{directory} is one: leave xla out"
        )

    def call(**tensors: Any) -> Any:
        return function(**tensors)

    return tf.function(call, jit_compile=True, autograph=False)


def _zeros(signature: Signature) -> pa.RecordBatch | None:
    """Return a row of zeros and empty strings; None if inputs may be ragged or sparse."""
    tf = load_tensorflow()
    columns = {}
    for spec in signature.inputs:
        if signature.may_be_parts(spec.name):
            return None
        sizes = [1 if size is None else size for size in (spec.shape or (None,))[1:]]
        if spec.dtype == "string":
            kind = pa.binary()
        else:
            dtype = tf.as_dtype(spec.dtype).as_numpy_dtype
            kind = pa.from_numpy_dtype(np.dtype(dtype))
        zero: bytes | int = b"" if spec.dtype == "string" else 0
        column = pa.array([zero] * int(np.prod(sizes, dtype=np.int64)), kind)
        for size in reversed(sizes):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns[spec.name] = column
    return pa.RecordBatch.from_pydict(columns) if columns else None
