"""Which vector storage a segment gets: the collection's, if the objective can be met with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from annheal.compactor.build.calibrate import Calibration, calibrate, meets_objective
from annheal.index import VectorIndex, can_store, quantized
from annheal.model.collection import CollectionSettings, VectorStorage
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint, no_yield_point

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibratedIndex:
    """An index with the storage that it gets, and its calibration with that storage."""

    index: VectorIndex
    calibration: Calibration


def calibrate_stored(
    index: VectorIndex,
    held_out: Float32Matrix,
    *,
    settings: CollectionSettings,
    all_vectors: Float32Matrix,
    logged_queries: Float32Matrix | None = None,
    yield_point: YieldPoint = no_yield_point,
) -> CalibratedIndex:
    """Calibrate `index`, a float32 graph, with the storage that the collection asks for.

    A quantized index is measured as a node searches it, with re-ranking. If no ef reaches the
    objective with it but one does with float32, the index stays float32: a stronger graph does not
    help where quantized vectors are equal. It also stays float32 if `all_vectors` (m, d), the rows
    of the finished index, have values beyond the range of the storage. Both are logged. `held_out`
    and `logged_queries` are as in `calibrate`.
    """
    storage = settings.storage

    def calibrated(index: VectorIndex) -> CalibratedIndex:
        calibration = calibrate(
            index,
            held_out,
            k=settings.recall_k,
            logged_queries=logged_queries,
            yield_point=yield_point,
        )
        return CalibratedIndex(index, calibration)

    if storage is VectorStorage.FLOAT32:
        return calibrated(index)
    if not can_store(all_vectors, storage):
        _log.warning("values beyond the range of %s: the segment keeps float32", storage)
        return calibrated(index)
    found = calibrated(
        quantized(index, storage=storage, sample=all_vectors, yield_point=yield_point)
    )
    if _meets_objective(found, settings):
        return found
    full = calibrated(index)
    if not _meets_objective(full, settings):
        return found
    _log.warning(
        "no ef reaches the objective of %s with %s: the segment keeps float32",
        settings.recall_objective,
        storage,
    )
    return full


def with_storage(
    index: VectorIndex, storage: VectorStorage, *, yield_point: YieldPoint = no_yield_point
) -> VectorIndex:
    """Return a float32 index with its vectors stored as `storage`."""
    if storage is VectorStorage.FLOAT32:
        return index
    return quantized(index, storage=storage, yield_point=yield_point)


def _meets_objective(found: CalibratedIndex, settings: CollectionSettings) -> bool:
    curve = found.calibration.held_out
    return meets_objective(curve, k=settings.recall_k, objective=settings.recall_objective)
