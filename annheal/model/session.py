"""How far a client has seen a collection: what writes return and reads accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SessionToken:
    """Sequence number by shard number, of the collection with identity `collection_id`."""

    collection_id: str
    sequences: Mapping[int, int] = field(default_factory=dict)

    def merged(self, other: SessionToken) -> SessionToken:
        """Return the token that sees what either sees; of another collection, `other` wins."""
        if other.collection_id != self.collection_id:
            return other
        sequences = dict(self.sequences)
        for shard, sequence in other.sequences.items():
            sequences[shard] = max(sequence, sequences.get(shard, 0))
        return SessionToken(self.collection_id, sequences)
