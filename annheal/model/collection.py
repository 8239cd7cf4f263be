"""Collections: what a set of records looks like and what it promises."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from annheal.model.measures.recall_tail import TailObjective
from annheal.model.texts.spec import TextModel


class Metric(StrEnum):
    """How two vectors are compared.

    Inside Annheal a score is always higher = better; `l2` scores are negated squared distances
    and become squared distances again at the public edge (`annheal.wire`).
    """

    COSINE = "cosine"
    INNER_PRODUCT = "inner_product"
    L2 = "l2"


class VectorStorage(StrEnum):
    """How a graph stores the vectors that it is walked with (scalar quantization).

    `fp16` and `int8` are lossy: half and a quarter of the bytes. What a walk finds is then compared
    again with the float32 vectors, which are kept beside the graph, so scores are exact.
    """

    FLOAT32 = "float32"
    FP16 = "fp16"
    INT8 = "int8"


class AttributeType(StrEnum):
    """Type of a filterable attribute; every value may be missing."""

    KEYWORD = "keyword"
    KEYWORD_LIST = "keyword_list"
    INT64 = "int64"
    FLOAT64 = "float64"
    BOOL = "bool"
    TIMESTAMP = "timestamp"


@dataclass(frozen=True, slots=True)
class AttributeField:
    """One declared attribute."""

    name: str
    type: AttributeType


Schema: TypeAlias = tuple[AttributeField, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An embedding model: its name tags every stored vector; `dimension` is in floats."""

    name: str
    dimension: int
    metric: Metric


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """HNSW build parameters (Malkov & Yashunin): links per node and build beam width."""

    m: int = 16
    ef_construction: int = 100


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """What may be changed while a collection lives.

    A growing segment is sealed at `seal_rows_max` rows, `seal_bytes_max` bytes of vectors or
    `seal_age_s` seconds after its first row. Compaction rewrites a segment when its dead rows
    reach `tombstone_ratio_max` (weighted by what walks pay for them) and `tombstone_rows_min`, or
    when live queries compare `walk_cost_ratio_max` times the rows that they did when it was built.
    It builds no segment with more than `segment_rows_max` rows or `segment_bytes_max` bytes, and
    merges small ones after `segment_idle_s` without a write. Without `compaction_automatic` it
    happens on request only. Writes are refused with a retry hint while a shard holds more than
    `unindexed_rows_max` rows that wait for an index. `storage` is that of the graphs built from
    now on. Where graphs miss the objective, a query may cost `recall_budget` times what an
    unfiltered one usually costs, to be answered by codes or exactly; 0: never.

    `recall_objective` is about the mean recall of queries. A second objective may be about each of
    them: `recall_objective_share` of the queries have a recall of at least `recall_tail_objective`.
    Both are 0 for none.
    """

    recall_objective: float = 0.95
    recall_k: int = 10
    seal_rows_max: int = 16_384
    seal_bytes_max: int = 64 << 20
    seal_age_s: float = 5.0
    tombstone_ratio_max: float = 0.2
    tombstone_rows_min: int = 1_000
    segment_rows_max: int = 1_000_000
    unindexed_rows_max: int = 500_000
    segment_bytes_max: int = 2 << 30
    segment_idle_s: float = 60.0
    walk_cost_ratio_max: float = 1.5
    compaction_automatic: bool = True
    storage: VectorStorage = VectorStorage.FLOAT32
    recall_budget: float = 16.0
    recall_tail_objective: float = 0.0
    recall_objective_share: float = 0.0

    @property
    def tail_objective(self) -> TailObjective | None:
        """The objective about single queries; None: there is none."""
        if not (self.recall_tail_objective and self.recall_objective_share):
            return None
        return TailObjective(self.recall_tail_objective, self.recall_objective_share)


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of records. `id` never changes and is never used again; names can be.

    `settings`, `index`, the list of models, which of them serves, and some options of embedders may
    be changed while it lives (`with_changes_of`), the rest may not.
    `models` are in the order in which they were added: a log or message that names no model has
    vectors of the first. `serving` names the one that answers searches; empty: the first. `removed`
    names those that were removed: they stay among `models`, because vectors of them may still be
    stored, and so that a name never means two models.
    `text_models` says for which of them the server embeds texts, and how. `replica_count` is for
    versions to come: this one refuses anything but one.
    `revision` is the metadata store's revision of this state, 0 before it is stored.
    """

    id: str
    name: str
    models: tuple[ModelSpec, ...]
    schema: Schema
    shard_count: int
    replica_count: int = 1
    index: IndexSettings = field(default_factory=IndexSettings)
    settings: CollectionSettings = field(default_factory=CollectionSettings)
    created_at_s: float = 0.0
    revision: int = 0
    text_models: tuple[TextModel, ...] = ()
    serving: str = ""
    removed: tuple[str, ...] = ()

    def text_model(self, name: str) -> TextModel | None:
        """Return how texts become vectors of the model `name`; None: the server does not embed."""
        return next((one for one in self.text_models if one.model == name), None)

    @property
    def model(self) -> ModelSpec:
        """The model that serves searches."""
        return self.model_named(self.serving) or self.models[0]

    @property
    def usable_models(self) -> tuple[ModelSpec, ...]:
        """The models that were not removed: those that may be written, read and searched."""
        return tuple(one for one in self.models if one.name not in self.removed)

    def tag_of(self, model: ModelSpec) -> str:
        """Return what tags vectors of `model` inside the cluster: nothing for the first one."""
        return "" if model == self.models[0] else model.name

    def model_named(self, name: str) -> ModelSpec | None:
        """Return the model `name`, be it removed; None: the collection has no such model."""
        return next((one for one in self.models if one.name == name), None)

    def with_changes_of(self, newer: Collection) -> Collection:
        """Return this collection with what may be changed while it lives as `newer` has it."""
        return replace(
            self,
            settings=newer.settings,
            index=newer.index,
            text_models=newer.text_models,
            models=newer.models,
            serving=newer.serving,
            removed=newer.removed,
            revision=newer.revision,
        )
