"""One attempt at one claimed task: fetch, build, upload, verify, report."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from annheal.compactor.build.backfill import Filled, fill_segment
from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.claim import Claim
from annheal.compactor.fetch import (
    Source,
    StaleTask,
    fetch_logged_queries,
    fetch_sources,
    load_collection,
)
from annheal.compactor.throttle import BuildSlots, MigrationPace
from annheal.compactor.verify import verify_segment
from annheal.embedding.host import EmbedderHost
from annheal.embedding.registry import make_embedder
from annheal.embedding.texts import TextEmbedder
from annheal.errors import Unavailable
from annheal.index import build_flat, set_search_threads
from annheal.metastore.protocol import MetaStore
from annheal.model.collection import ModelSpec
from annheal.model.texts.template import parse_template
from annheal.model.topology.manifest import SegmentEntry, Tier, VectorPartEntry
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Clock, new_token, wall_s
from annheal.runtime.fail_points import fail_point
from annheal.runtime.lane import lower_thread_priority
from annheal.runtime.stop import StopSignal
from annheal.segment.parts.files import fetch_part, upload_part, upload_whole
from annheal.segment.parts.segment import PartSegment
from annheal.segment.parts.write import write_part

PROGRESS_INTERVAL_S = 1.0

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """The step of an attempt, and the share of it in [0, 1] that is done.

    The build's thread writes it, the event loop reads it.
    """

    step: str = "claimed"
    share: float = 0.0


class Attempt:
    """The work of one claim, from fetching the sources to the task's new state.

    The build runs in a thread of its own. A cancelled attempt waits for the end of that thread
    before it removes the files that the thread uses.
    """

    def __init__(
        self,
        meta: MetaStore,
        objects: ObjectStore,
        *,
        worker_dir: Path,
        slots: BuildSlots,
        nice: int = 0,
        now_s: Clock = wall_s,
        host: EmbedderHost | None = None,
    ) -> None:
        self._meta = meta
        self._objects = objects
        self._worker_dir = worker_dir
        self._slots = slots
        self._nice = nice
        self._now_s = now_s
        self._host = host or EmbedderHost()
        self._signal = StopSignal()
        self.progress = Progress()

    async def run(self, task: CompactionTask) -> CompactionTask:
        """Return `task` as BUILT, or as CANCELLED when it is stale; raise what made it fail."""
        fail_point("compactor.claimed")
        run = self._backfill if task.reason is TaskReason.BACKFILL else self._run
        try:
            async with self._directory() as directory:
                return await run(task, directory)
        except StaleTask as error:
            return replace(
                task, phase=TaskPhase.CANCELLED, error=error.message, finished_at_s=self._now_s()
            )

    async def _run(self, task: CompactionTask, directory: Path) -> CompactionTask:
        self._step("fetching")
        sources = await fetch_sources(
            self._meta, self._objects, task, directory=directory / "sources"
        )
        fail_point("compactor.fetched")
        self._step("waiting")
        async with self._slots.slot():
            self._step("building")
            # Only now: settings may have been changed while the sources were read, and vectors of a
            # model that is not in the collection are left out.
            collection = await load_collection(self._meta, task.collection_id)
            logged_queries = await fetch_logged_queries(self._objects, task, model=collection.model)
            order = BuildOrder(
                segment_id=new_token(),
                tier=Tier(task.tier),
                collection=collection,
                threads=self._slots.threads_each,
                created_at_s=self._now_s(),
                on_progress=self._on_progress,
                reason=task.reason,
                logged_queries=logged_queries,
                yield_point=self._signal.check,
                without_model=task.model if task.reason is TaskReason.MODEL_PURGE else "",
            )
            output = await self._in_thread(
                lambda: build_segment(sources, order, directory=directory / "output")
            )
        fail_point("compactor.built")
        if output is not None:
            self._step("uploading")
            await upload_whole(
                self._objects,
                task.collection_id,
                task.shard,
                directory / "output",
                output,
                on_stored=lambda _: fail_point("compactor.uploading"),
            )
            fail_point("compactor.uploaded")
            self._step("verifying")
            await verify_segment(
                self._objects,
                collection_id=task.collection_id,
                shard=task.shard,
                entry=output,
                rows=output.rows,
                settings=collection.settings,
                directory=directory / "stored",
            )
        fail_point("compactor.verified")
        self._step("reporting")
        return _built(task, sources, output, now_s=self._now_s())

    async def _backfill(self, task: CompactionTask, directory: Path) -> CompactionTask:
        """Make a vector part for the one source of `task`; see `annheal.compactor.build.backfill`.

        Without a vector to add, the task is built without a part.
        """
        self._step("fetching")
        (source,) = await fetch_sources(
            self._meta, self._objects, task, directory=directory / "sources"
        )
        collection = await load_collection(self._meta, task.collection_id)
        model, text_model = collection.model_named(task.model), collection.text_model(task.model)
        if model is None or text_model is None or not text_model.source:
            raise StaleTask(
                f"model {task.model!r} of collection {collection.name!r} has no embedder with a"
                " source template any more"
            )
        fail_point("compactor.fetched")
        self._step("embedding")
        embedder = TextEmbedder(
            make_embedder(text_model.embedder, dimension=model.dimension, host=self._host),
            text_model.embedder,
            metric=model.metric,
        )
        try:
            filled = await fill_segment(
                source,
                model,
                parse_template(text_model.source),
                embedder,
                shard=task.shard,
                pace=MigrationPace(self._meta, task.collection_id),
                in_thread=self._in_thread,
                on_progress=self._on_progress,
            )
        finally:
            await embedder.close()
        fail_point("compactor.embedded")
        part = None
        if filled.made:
            self._step("uploading")
            part = await self._stored_part(task, source, model, filled, directory / "part")
        fail_point("compactor.verified")
        self._step("reporting")
        return replace(
            task,
            phase=TaskPhase.BUILT,
            error="",
            finished_at_s=self._now_s(),
            rows_in=source.segment.rows,
            rows_out=filled.made,
            skipped=filled.skipped,
            skipped_records=filled.skipped_records,
            part=part,
        )

    async def _stored_part(
        self,
        task: CompactionTask,
        source: Source,
        model: ModelSpec,
        filled: Filled,
        directory: Path,
    ) -> VectorPartEntry:
        """Write a part, store it, and read it back."""
        segment, part_id = source.segment, new_token()
        part = await self._in_thread(
            lambda: write_part(
                directory,
                segment_id=segment.id,
                part_id=part_id,
                model=model,
                index=build_flat(filled.vectors, metric=model.metric),
                rows=filled.rows,
                segment_rows=segment.rows,
                created_at_s=self._now_s(),
                skipped={one.reason: one.rows for one in filled.skipped},
                yield_point=self._signal.check,
            )
        )
        await upload_part(
            self._objects,
            task.collection_id,
            task.shard,
            segment.id,
            directory,
            part,
            on_stored=lambda _: fail_point("compactor.uploading"),
        )
        fail_point("compactor.uploaded")
        self._step("verifying")
        files = await fetch_part(
            self._objects,
            task.collection_id,
            task.shard,
            segment.id,
            part,
            cache_dir=directory / "stored",
        )
        await self._in_thread(lambda: PartSegment(segment, files))
        return part

    def _step(self, step: str) -> None:
        self.progress.step, self.progress.share = step, 0.0

    def _on_progress(self, share: float) -> None:
        self._signal.check()
        self.progress.share = share
        # Called in the build's thread: since the last call other builds may have begun or ended.
        set_search_threads(self._slots.threads_each)

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        """Run `work` in a new thread; when cancelled, make it stop and wait for its end."""
        pool = ThreadPoolExecutor(
            1,
            thread_name_prefix="compactor-build",
            initializer=lower_thread_priority,
            initargs=(self._nice,),
        )
        running = asyncio.get_running_loop().run_in_executor(pool, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._signal.stop()
            await asyncio.wait({running})
            running.exception()  # marks the error as retrieved: it is of no interest any more
            raise
        finally:
            pool.shutdown(wait=False)

    @asynccontextmanager
    async def _directory(self) -> AsyncIterator[Path]:
        self._worker_dir.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="attempt-", dir=self._worker_dir))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


async def run_progress(claim: Claim, progress: Progress) -> None:
    """Publish `progress` on the claim when it changed, at most once a second, until cancelled.

    Raises `LeaseExpired` when the claim is lost.
    """
    shown = ("claimed", 0.0)
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL_S)
        present = (progress.step, progress.share)
        if present == shown:
            continue
        try:
            await claim.publish(step=progress.step, progress=progress.share)
        except Unavailable as error:
            _log.info("progress of task %s is not shown yet: %s", claim.task.id, error)
        else:
            shown = present


def _built(
    task: CompactionTask, sources: list[Source], output: SegmentEntry | None, *, now_s: float
) -> CompactionTask:
    return replace(
        task,
        phase=TaskPhase.BUILT,
        output=output,
        error="",
        finished_at_s=now_s,
        rows_in=sum(source.segment.rows for source in sources),
        rows_out=0 if output is None else output.rows,
    )
