"""What a migration would take: texts of a sample of records, and a trial of the embedder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.reads import Reads
from annheal.coordinator.data_path.router import Router
from annheal.coordinator.data_path.texts import Texts
from annheal.coordinator.leader.observation import observe_shards
from annheal.coordinator.migration.coverage import Coverage, RowsOf, coverage_of
from annheal.embedding.batches import estimated_tokens
from annheal.embedding.source import NoSource, render_records
from annheal.embedding.texts import Fault, Purpose
from annheal.errors import AnnhealError
from annheal.model.collection import Collection, ModelSpec
from annheal.model.records import Projection, RecordSet
from annheal.model.texts.spec import TextModel
from annheal.model.texts.template import parse_template
from annheal.model.topology.migration.state import SkipCount
from annheal.model.topology.migration.view import MigrationEstimate
from annheal.model.write import ScanRequest
from annheal.runtime.clock import Clock
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload

SAMPLE_DEFAULT: Final = 1_000
SAMPLE_MAX: Final = 10_000
"""Records that an estimate reads."""
TRIAL_TEXTS_MAX: Final = 64
"""Texts that it embeds to measure the rate."""
NO_SOURCE: Final = "no_source"
_LINK_BYTES: Final = 8  # one link of a graph with FAISS's overhead; a row has 2 M of them
_SOURCE_ONLY: Final = Projection(attributes=None, payload=True)


@dataclass(frozen=True, slots=True)
class _Sample:
    texts: Sequence[str]
    size: int
    reasons: Counter[str]


class Estimator:
    """Estimates migrations from what is stored; it changes nothing."""

    def __init__(
        self,
        catalog: Catalog,
        router: Router,
        reads: Reads,
        texts: Texts,
        *,
        offload: Offload,
        observe_timeout_s: float,
        clock: Clock,
        rows_of: RowsOf,
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._reads = reads
        self._texts = texts
        self._offload = offload
        self._observe_timeout_s = observe_timeout_s
        self._clock = clock
        self._rows_of = rows_of

    async def estimate(
        self, collection: Collection, model: ModelSpec, *, sample_size: int, deadline: Deadline
    ) -> MigrationEstimate:
        """Return what a migration to `model` would take.

        Reads about `sample_size` records, the first of each shard in the order of the hashes of
        their ids, which is a random order. Embeds up to `TRIAL_TEXTS_MAX` of their texts.
        """
        old = collection.model.name
        coverage = await self._coverage(collection, (old, model.name))
        rows = coverage.having(old) + coverage.lacking(old)
        lacking = coverage.lacking(model.name)
        warnings = []
        if coverage.shards_unreported:
            warnings.append(f"{coverage.shards_unreported} shards did not report: not counted")
        row_bytes = model.dimension * 4 + 2 * collection.index.m * _LINK_BYTES
        base = MigrationEstimate(
            collection=collection.name,
            from_model=old,
            to_model=model.name,
            rows=rows,
            rows_lacking=lacking,
            sampled=0,
            disk_bytes=lacking * row_bytes,
            memory_bytes=lacking * row_bytes,
        )
        text_model = collection.text_model(model.name)
        if text_model is None or not text_model.source:
            what = "no embedder" if text_model is None else "no source template"
            warnings.append(f"model {model.name!r} has {what}: its vectors must come from clients")
            return replace(base, warnings=tuple(warnings))
        sample = await self._sample(collection, text_model, sample_size, deadline)
        return await self._with_texts(
            base, collection, text_model, sample, warnings, deadline=deadline
        )

    async def _with_texts(
        self,
        base: MigrationEstimate,
        collection: Collection,
        text_model: TextModel,
        sample: _Sample,
        warnings: list[str],
        *,
        deadline: Deadline,
    ) -> MigrationEstimate:
        scale = base.rows_lacking / sample.size if sample.size else 0.0
        rate = 0.0
        trial = sample.texts[:TRIAL_TEXTS_MAX]
        if trial:
            # The embedder of the model that is migrated to, as if it served already.
            as_serving = replace(collection, serving=text_model.model)
            began_s = self._clock()
            try:
                found = await self._texts.embed(
                    as_serving, trial, purpose=Purpose.DOCUMENT, deadline=deadline
                )
            except AnnhealError as error:
                warnings.append(f"the embedder failed: {error.message}")
            else:
                seconds = self._clock() - began_s
                rate = len(trial) / seconds if seconds > 0 else 0.0
                refused = [Fault(one.fault) for one in found.missing.values()]
                sample.reasons.update(one.value for one in refused)
        without = sample.size - len(sample.texts)
        rows_with_text = base.rows_lacking * (1 - without / sample.size) if sample.size else 0.0
        return replace(
            base,
            sampled=sample.size,
            sampled_without_text=without,
            reasons=tuple(SkipCount(*one) for one in sample.reasons.most_common()),
            embedder=text_model.embedder.kind,
            characters=round(scale * sum(map(len, sample.texts))),
            tokens=round(scale * sum(map(estimated_tokens, sample.texts))),
            rows_per_s=rate,
            duration_s=rows_with_text / rate if rate else 0.0,
            warnings=tuple(warnings),
        )

    async def _coverage(self, collection: Collection, models: Sequence[str]) -> Coverage:
        observation = await observe_shards(
            self._catalog,
            self._router,
            timeout_s=self._observe_timeout_s,
            collection_id=collection.id,
        )
        states = observation.states.values()
        return coverage_of(collection, states, models=models, rows_of=self._rows_of)

    async def _sample(
        self, collection: Collection, text_model: TextModel, size: int, deadline: Deadline
    ) -> _Sample:
        each = max(1, -(-size // collection.shard_count))
        template = parse_template(text_model.source)
        texts: list[str] = []
        reasons: Counter[str] = Counter()
        read = 0
        for shard in range(collection.shard_count):
            request = ScanRequest(
                collection_id=collection.id, shard=shard, rows_max=each, projection=_SOURCE_ONLY
            )
            page = await self._reads.scan_shard(collection, request, deadline=deadline)
            attributes, payloads = _columns(page.records)
            rendered = await self._offload.run(
                lambda a, p: render_records(template, attributes=a, payloads=p),
                attributes,
                payloads,
            )
            read += len(rendered)
            for one in rendered:
                if isinstance(one, NoSource):
                    reasons[NO_SOURCE] += 1
                elif not one.strip():
                    reasons[Fault.EMPTY.value] += 1
                else:
                    texts.append(one)
            if read >= size:
                break
        return _Sample(texts, read, reasons)


def _columns(records: RecordSet) -> tuple[pa.RecordBatch, pa.BinaryArray]:
    """Return attributes and payloads; where there are none, columns without values."""
    attributes, payloads = records.attributes, records.payloads
    if attributes is None:
        attributes = pa.RecordBatch.from_arrays([], names=[])
    if payloads is None:
        payloads = pa.nulls(len(records), type=pa.binary())
    return attributes, payloads
