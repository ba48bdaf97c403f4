"""Feast's registry in a file, written atomically.

Feast writes its registry file in place, so a writer that is killed leaves half of it, and a
concurrent reader may see half of it. Here a write makes a new file, waits for the disk and renames
it: a reader sees the registry before it or after it.
"""

from __future__ import annotations

import uuid

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.utils import _utc_now

from tidemill.serving.files.atomic_write import atomic_write


class AtomicFileRegistryStore(FileRegistryStore):
    """The registry's file; Feast alone reads it like its own."""

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(_utc_now())
        with atomic_write(self._filepath, durable=True) as unfinished:
            unfinished.write_bytes(registry_proto.SerializeToString())
