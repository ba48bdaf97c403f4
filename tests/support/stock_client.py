"""A client that knows Feast only, run as a process of its own; prints what Feast's SDK gives.

Usage: ``python stock_client.py REPOSITORY`` with a request as JSON on the standard input:
``{"features": [...], "entity_rows": [...], "server": URL or null}``. With a server it is Feast's
own remote online store that asks.
"""

import json
import sys

import feast
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus


def main() -> None:
    """Answer one request."""
    repository, asked = sys.argv[1], json.load(sys.stdin)
    store = feast.FeatureStore(repo_path=repository)
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
    answer = {
        name: {
            "values": [v.SerializeToString(deterministic=True).hex() for v in vector.values],
            "statuses": [FieldStatus.Name(status) for status in vector.statuses],
        }
        for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
