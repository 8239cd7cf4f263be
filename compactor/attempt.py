"""One attempt at one claimed task: fetch, build, upload, verify, report."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.claim import Claim
from annheal.compactor.fetch import Source, StaleTask, fetch_logged, fetch_sources, load_collection
from annheal.compactor.throttle import BuildTurns, lower_priority
from annheal.compactor.verify import verify_segment
from annheal.errors import Unavailable
from annheal.index import set_search_threads
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.fail_points import fail_point
from annheal.segment import upload_segment

PROGRESS_INTERVAL_S = 1.0

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Where an attempt stands. Written by the worker's threads, read by the event loop."""

    step: str = "claimed"
    share: float = 0.0


class _Abandoned(Exception):
    """Raised inside a build whose task was cancelled; never leaves this module."""


class Attempt:
    """Does the work of one claim. `run` returns the task as it is to be stored.

    What must not run on the event loop runs in one thread, and a cancelled attempt waits for that
    thread before it removes the files under it.
    """

    def __init__(
        self,
        meta: MetaStore,
        objects: ObjectStore,
        *,
        worker_dir: Path,
        turns: BuildTurns,
        nice: int = 0,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._meta = meta
        self._objects = objects
        self._worker_dir = worker_dir
        self._turns = turns
        self._nice = nice
        self._now_s = now_s
        self._abandoned = threading.Event()
        self.progress = Progress()

    async def run(self, task: CompactionTask) -> CompactionTask:
        """Return `task` as BUILT, or as CANCELLED when it is stale; raises when it failed."""
        fail_point("compactor.claimed")
        try:
            async with self._directory() as directory:
                return await self._run(task, directory)
        except StaleTask as error:
            return replace(
                task, phase=TaskPhase.CANCELLED, error=error.message, finished_at_s=self._now_s()
            )

    async def _run(self, task: CompactionTask, directory: Path) -> CompactionTask:
        self._step("fetching")
        sources = await fetch_sources(
            self._meta, self._objects, task, directory=directory / "sources"
        )
        logged = await fetch_logged(self._objects, task, model=sources[0].segment.meta.model)
        fail_point("compactor.fetched")
        self._step("waiting")
        async with self._turns.turn():
            self._step("building")
            # Only now: settings may have been changed while the sources were read.
            collection = await load_collection(self._meta, task.collection_id)
            order = BuildOrder(
                segment_id=secrets.token_hex(8),
                tier=Tier(task.tier),
                collection=collection,
                threads=self._turns.share,
                created_at_s=self._now_s(),
                on_progress=self._on_progress,
                reason=task.reason,
                logged=logged,
            )
            output = await self._in_thread(
                lambda: build_segment(sources, order, directory=directory / "output")
            )
        fail_point("compactor.built")
        if output is not None:
            self._step("uploading")
            await upload_segment(
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
                goal=collection.settings,
                directory=directory / "stored",
            )
        fail_point("compactor.verified")
        self._step("reporting")
        return _built(task, sources, output, now_s=self._now_s())

    def _step(self, step: str) -> None:
        self.progress.step, self.progress.share = step, 0.0

    def _on_progress(self, share: float) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
        self.progress.share = share
        # In the build's thread: other builds may have begun or ended since.
        set_search_threads(self._turns.share)

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        """Run `work` in a thread of its own; when cancelled, tell it and wait for its end."""
        pool = ThreadPoolExecutor(
            1,
            thread_name_prefix="compactor-build",
            initializer=lower_priority,
            initargs=(self._nice,),
        )
        running = asyncio.get_running_loop().run_in_executor(pool, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._abandoned.set()
            await asyncio.wait({running})
            running.exception()  # whatever it was, nobody waits for it any more
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
    """Publish `progress` whenever it changed, at most once a second, until cancelled."""
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
