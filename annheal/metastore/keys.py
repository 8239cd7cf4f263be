"""The layout of Annheal's metadata keys: the one place that spells them.

=================================  ==============================================  ======
key                                value                                           leased
=================================  ==============================================  ======
``collections/<name>``             the collection's definition                     no
``shards/<collection_id>/<shard>`` assignment: owner, epoch, target                no
``manifests/<collection_id>/...``  the shard's segments, delete vectors, WAL end   no
``collected/<collection_id>/...``  its objects that garbage collection deletes     no
``nodes/<node_id>``                a shard node that is alive                      yes
``node-settings/<node_id>``        what an operator set for it (drain)             no
``coordinators/<id>``              a coordinator that is alive                     yes
``compactors/<id>``                a compactor that is alive                       yes
``leader``                         the coordinator that runs the control loops     yes
``tasks/<task_id>``                one piece of delegated work                     no
``claims/<task_id>``               the compactor that works on it                  yes
``migrations/<collection_id>``     the change of its embedding model               no
=================================  ==============================================  ======

Shards are written with five digits, so that key order is shard order.
"""

from __future__ import annotations

from annheal.errors import InvalidArgument
from annheal.model.names import SHARD_DIGITS, checked_shard

COLLECTIONS_PREFIX = "collections/"
SHARDS_PREFIX = "shards/"
MANIFESTS_PREFIX = "manifests/"
COLLECTED_PREFIX = "collected/"
NODES_PREFIX = "nodes/"
NODE_SETTINGS_PREFIX = "node-settings/"
COORDINATORS_PREFIX = "coordinators/"
COMPACTORS_PREFIX = "compactors/"
TASKS_PREFIX = "tasks/"
CLAIMS_PREFIX = "claims/"
MIGRATIONS_PREFIX = "migrations/"
LEADER_KEY = "leader"


def collection_key(name: str) -> str:
    """Return the key of the collection called `name`."""
    return COLLECTIONS_PREFIX + _part("collection", name)


def shard_key(collection_id: str, shard: int) -> str:
    """Return the key of a shard's assignment."""
    return f"{collection_shards_prefix(collection_id)}{_shard_part(shard)}"


def manifest_key(collection_id: str, shard: int) -> str:
    """Return the key of a shard's manifest."""
    return f"{collection_manifests_prefix(collection_id)}{_shard_part(shard)}"


def collected_key(collection_id: str, shard: int) -> str:
    """Return the key of the objects of a shard that garbage collection deletes."""
    return f"{collection_collected_prefix(collection_id)}{_shard_part(shard)}"


def collection_shards_prefix(collection_id: str) -> str:
    """Return the prefix of all assignments of one collection."""
    return f"{SHARDS_PREFIX}{_part('collection_id', collection_id)}/"


def collection_manifests_prefix(collection_id: str) -> str:
    """Return the prefix of all manifests of one collection."""
    return f"{MANIFESTS_PREFIX}{_part('collection_id', collection_id)}/"


def collection_collected_prefix(collection_id: str) -> str:
    """Return the prefix of the collected objects of all shards of one collection."""
    return f"{COLLECTED_PREFIX}{_part('collection_id', collection_id)}/"


def node_key(node_id: str) -> str:
    """Return the leased key by which a shard node says that it is alive."""
    return NODES_PREFIX + _part("node_id", node_id)


def node_settings_key(node_id: str) -> str:
    """Return the key of a node's settings, which outlive the node's process."""
    return NODE_SETTINGS_PREFIX + _part("node_id", node_id)


def coordinator_key(coordinator_id: str) -> str:
    """Return the leased key by which a coordinator says that it is alive."""
    return COORDINATORS_PREFIX + _part("coordinator_id", coordinator_id)


def compactor_key(compactor_id: str) -> str:
    """Return the leased key by which a compactor says that it is alive."""
    return COMPACTORS_PREFIX + _part("compactor_id", compactor_id)


def task_key(task_id: str) -> str:
    """Return the key of a task."""
    return TASKS_PREFIX + _part("task_id", task_id)


def claim_key(task_id: str) -> str:
    """Return the leased key that a compactor holds while it works on a task."""
    return CLAIMS_PREFIX + _part("task_id", task_id)


def migration_key(collection_id: str) -> str:
    """Return the key of a collection's migration, the present or the last one."""
    return MIGRATIONS_PREFIX + _part("collection_id", collection_id)


def parse_shard_key(key: str) -> tuple[str, int]:
    """Return the (collection id, shard) of a `shards/` key."""
    return _parse_sharded(SHARDS_PREFIX, key)


def parse_manifest_key(key: str) -> tuple[str, int]:
    """Return the (collection id, shard) of a `manifests/` key."""
    return _parse_sharded(MANIFESTS_PREFIX, key)


def parse_id(prefix: str, key: str) -> str:
    """Return what follows `prefix` in `key`: the name or id of a one-part key."""
    rest = key.removeprefix(prefix)
    if rest == key or not rest or "/" in rest:
        raise InvalidArgument.of("key", f"{key!r} is not a key under {prefix!r}")
    return rest


def _part(field: str, value: str) -> str:
    if not value or "/" in value:
        raise InvalidArgument.of(field, f"{value!r} is empty or holds a slash")
    return value


def _shard_part(shard: int) -> str:
    return f"{checked_shard(shard):0{SHARD_DIGITS}d}"


def _parse_sharded(prefix: str, key: str) -> tuple[str, int]:
    collection_id, _, shard = key.removeprefix(prefix).rpartition("/")
    valid = (
        key.startswith(prefix)
        and collection_id
        and "/" not in collection_id
        and len(shard) == SHARD_DIGITS
        and shard.isdecimal()
        and shard.isascii()
    )
    if not valid:
        raise InvalidArgument.of("key", f"{key!r} is not a key under {prefix!r}")
    return collection_id, int(shard)
