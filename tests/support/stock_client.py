"""A client that knows Feast only, run as a process of its own; prints what Feast's SDK gives.

It reads requests from the standard input, a line of JSON each, and answers each with a line:
``{"repository": FOLDER, "features": [...], "entity_rows": [...], "server": URL or null,
"environment": {...}}``. With a server it is Feast's own remote online store that asks.
"""

import json
import os
import sys
from typing import Any

import feast
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Answer one request, with a store opened for it."""
    os.environ.update(asked["environment"])
    store = feast.FeatureStore(repo_path=asked["repository"])
    clock = store.config.online_store.clock
    if asked["server"] is not None:
        config = store.config.model_dump(include={"project", "provider"})
        store = feast.FeatureStore(
            config=feast.RepoConfig(
                **config,
                registry=store.config.registry,
                online_store={"type": "remote", "path": asked["server"]},
                offline_store={"type": "file"},
                entity_key_serialization_version=3,
            )
        )
    proto = store.get_online_features(asked["features"], asked["entity_rows"]).proto
    features = {
        name: {
            "values": [v.SerializeToString(deterministic=True).hex() for v in vector.values],
            "statuses": [FieldStatus.Name(status) for status in vector.statuses],
        }
        for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
    }
    return {"clock": clock, "features": features}


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
