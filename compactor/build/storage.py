"""Which storage a graph gets: the collection's, if its recall can keep the objective."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from annheal.compactor.build.calibrate import Calibration, calibrate, meets_objective
from annheal.index import VectorIndex, can_store, quantized
from annheal.model.collection import CollectionSettings, VectorStorage
from annheal.model.records import Float32Matrix

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A graph with the storage that it gets, and what was measured of it so."""

    index: VectorIndex
    calibration: Calibration


def calibrate_stored(
    index: VectorIndex,
    held_out: Float32Matrix,
    *,
    goal: CollectionSettings,
    every: Float32Matrix,
    logged: Float32Matrix | None = None,
) -> Stored:
    """Measure `index`, a float32 graph, with the storage that the collection asks for.

    Walks over codes are measured as a node runs them, with re-ranking. Where no beam reaches the
    objective that way and one does with float32, the graph stays with float32: more links would not
    make codes tell apart what they cannot. `every` (m, d) are the rows of the index in the end,
    which codes have to hold; the rest is as in `calibrate`.
    """
    storage = goal.storage
    if storage is VectorStorage.FLOAT32:
        return Stored(index, calibrate(index, held_out, k=goal.recall_k, logged=logged))
    if not can_store(every, storage):
        _log.warning("values beyond the range of %s: the segment keeps float32", storage)
        return Stored(index, calibrate(index, held_out, k=goal.recall_k, logged=logged))
    lossy = quantized(index, storage=storage, sample=every)
    found = Stored(lossy, calibrate(lossy, held_out, k=goal.recall_k, logged=logged))
    if _meets(found, goal):
        return found
    full = Stored(index, calibrate(index, held_out, k=goal.recall_k, logged=logged))
    if not _meets(full, goal):
        return found
    _log.warning(
        "no ef reaches the objective of %s with %s: the segment keeps float32",
        goal.recall_objective,
        storage,
    )
    return full


def as_stored(index: VectorIndex, storage: VectorStorage) -> VectorIndex:
    """Return a float32 graph with its vectors stored as `storage` says."""
    return index if storage is VectorStorage.FLOAT32 else quantized(index, storage=storage)


def _meets(stored: Stored, goal: CollectionSettings) -> bool:
    curve = stored.calibration.held_out
    return meets_objective(curve, k=goal.recall_k, objective=goal.recall_objective)
