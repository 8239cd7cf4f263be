"""Legal and illegal changes of a manifest."""

from __future__ import annotations

import pytest

from annheal.errors import FailedPrecondition, Fenced, InvariantViolation
from annheal.metastore.codec import decode_value, encode_value
from annheal.model.topology.manifest import (
    DeleteVectorEntry,
    IndexKind,
    Manifest,
    SegmentEntry,
    Tier,
)
from annheal.shards import transitions


def segment(segment_id: str) -> SegmentEntry:
    return SegmentEntry(segment_id, Tier.HOT, "m", IndexKind.FLAT, 10, 100, "checksum", 1, 10)


def deletes(segment_id: str, dead_rows: int = 1) -> DeleteVectorEntry:
    return DeleteVectorEntry(segment_id, f"deletes/{segment_id}", "checksum", dead_rows)


def owned(**changes: object) -> Manifest:
    base = {
        "version": 5,
        "epoch": 3,
        "checkpoint_slot": 10,
        "last_sequence": 100,
        "segments": (segment("a"), segment("b")),
        "delete_vectors": (deletes("a"),),
    }
    return Manifest("c1", 0, **{**base, **changes})  # type: ignore[arg-type]


def checkpointed(manifest: Manifest, **changes: object) -> Manifest:
    arguments = {
        "epoch": 3,
        "flushed": [segment("c")],
        "delete_vectors": [deletes("a", 2), deletes("b")],
        "checkpoint_slot": 12,
        "last_sequence": 120,
    }
    return transitions.checkpoint(manifest, **{**arguments, **changes})  # type: ignore[arg-type]


def swapped(manifest: Manifest, **changes: object) -> Manifest:
    arguments = {
        "epoch": 3,
        "sources": ("a",),
        "output": segment("out"),
        "delete_vector": None,
    }
    return transitions.swap_segments(manifest, **{**arguments, **changes})  # type: ignore[arg-type]


def test_a_new_owner_only_changes_the_epoch() -> None:
    taken = transitions.take_over(owned(), epoch=4)
    assert taken == owned(epoch=4, version=6)


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_an_epoch_never_goes_back(epoch: int) -> None:
    with pytest.raises(Fenced):
        transitions.take_over(owned(), epoch=epoch)


def test_a_checkpoint_adds_segments_and_replaces_delete_vectors() -> None:
    assert checkpointed(owned()) == owned(
        version=6,
        checkpoint_slot=12,
        last_sequence=120,
        segments=(segment("a"), segment("b"), segment("c")),
        delete_vectors=(deletes("a", 2), deletes("b")),
    )


def test_a_checkpoint_may_stand_still_and_add_nothing() -> None:
    same = checkpointed(
        owned(), flushed=[], delete_vectors=[], checkpoint_slot=10, last_sequence=100
    )
    assert same == owned(version=6, delete_vectors=())


@pytest.mark.parametrize("back", [{"checkpoint_slot": 9}, {"last_sequence": 99}])
def test_a_checkpoint_never_goes_back(back: dict[str, int]) -> None:
    with pytest.raises(InvariantViolation):
        checkpointed(owned(), **back)


@pytest.mark.parametrize("epoch", [2, 4])
def test_only_the_owner_changes_a_manifest(epoch: int) -> None:
    with pytest.raises(Fenced):
        checkpointed(owned(), epoch=epoch)
    with pytest.raises(Fenced):
        swapped(owned(), epoch=epoch)


def test_a_segment_appears_once() -> None:
    with pytest.raises(InvariantViolation):
        checkpointed(owned(), flushed=[segment("a")])
    with pytest.raises(InvariantViolation):
        swapped(owned(), output=segment("b"))


def test_a_delete_vector_belongs_to_a_segment() -> None:
    with pytest.raises(InvariantViolation):
        checkpointed(owned(), delete_vectors=[deletes("gone")])


def test_a_swap_takes_the_sources_and_their_delete_vectors_out() -> None:
    result = swapped(owned(), delete_vector=deletes("out"))
    assert result == owned(
        version=6, segments=(segment("b"), segment("out")), delete_vectors=(deletes("out"),)
    )


def test_a_swap_of_everything_for_nothing_leaves_no_segment() -> None:
    result = swapped(owned(), sources=("a", "b"), output=None)
    assert (result.segments, result.delete_vectors) == ((), ())


def test_a_stale_swap_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="stale"):
        swapped(owned(), sources=("a", "gone"))


def test_a_swap_without_sources_is_a_bug() -> None:
    with pytest.raises(InvariantViolation):
        swapped(owned(), sources=())


def test_a_manifest_survives_its_encoding() -> None:
    assert decode_value(encode_value(owned()), Manifest, key="manifests/c1/00000") == owned()
