"""The service of migrations."""

from __future__ import annotations

from typing import Protocol

from annheal.coordinator.migration.estimate import SAMPLE_DEFAULT
from annheal.coordinator.migration.jobs import Migrations
from annheal.coordinator.service.pages import page_rows
from annheal.model.topology.migration.transitions import Event
from annheal.rpc.server import Context, deadline_of
from annheal.v1 import migration_pb2 as pb
from annheal.wire.lifecycle import migration as wire


class _Order(Protocol):
    @property
    def collection(self) -> str: ...
    @property
    def who(self) -> str: ...
    @property
    def why(self) -> str: ...


class MigrationServicer:
    """`annheal.v1.MigrationService`."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations

    async def PlanMigration(
        self, request: pb.PlanMigrationRequest, context: Context
    ) -> pb.PlanMigrationResponse:
        """Estimate a migration."""
        estimate = await self._migrations.plan(
            request.collection,
            request.to_model,
            sample_size=request.sample_size or SAMPLE_DEFAULT,
            deadline=deadline_of(context),
        )
        return wire.encode_estimate(estimate)

    async def StartMigration(
        self, request: pb.StartMigrationRequest, context: Context
    ) -> pb.StartMigrationResponse:
        """Start a migration."""
        found = await self._migrations.start(
            request.collection,
            request.to_model,
            settings=lambda present: wire.apply_settings(request.settings, present=present),
            thresholds=lambda present: wire.apply_thresholds(request.thresholds, present=present),
            who=request.who,
            why=request.why,
            deadline=deadline_of(context),
        )
        return pb.StartMigrationResponse(migration=wire.encode_migration(found))

    async def GetMigration(
        self, request: pb.GetMigrationRequest, context: Context
    ) -> pb.GetMigrationResponse:
        """Describe a migration."""
        found = await self._migrations.get(request.collection)
        return pb.GetMigrationResponse(migration=wire.encode_migration(found))

    async def ListMigrations(
        self, request: pb.ListMigrationsRequest, context: Context
    ) -> pb.ListMigrationsResponse:
        """List migrations by collection; the token of a page is the last name of it."""
        rows_max = page_rows(request.page_size)
        rest = [one for one in self._migrations.all() if one.collection > request.page_token]
        page = rest[:rows_max]
        return pb.ListMigrationsResponse(
            migrations=[wire.encode_migration(one) for one in page],
            next_page_token=page[-1].collection if len(rest) > rows_max else "",
        )

    async def UpdateMigration(
        self, request: pb.UpdateMigrationRequest, context: Context
    ) -> pb.UpdateMigrationResponse:
        """Change settings and thresholds."""
        found = await self._migrations.update(
            request.collection,
            settings=lambda present: wire.apply_settings(request.settings, present=present),
            thresholds=lambda present: wire.apply_thresholds(request.thresholds, present=present),
            who=request.who,
            why=request.why,
            deadline=deadline_of(context),
        )
        return pb.UpdateMigrationResponse(migration=wire.encode_migration(found))

    async def CommitMigration(
        self, request: pb.CommitMigrationRequest, context: Context
    ) -> pb.CommitMigrationResponse:
        """Let the new model serve."""
        found = await self._take(Event.COMMIT, request, context, force=request.force)
        return pb.CommitMigrationResponse(migration=found)

    async def PauseMigration(
        self, request: pb.PauseMigrationRequest, context: Context
    ) -> pb.PauseMigrationResponse:
        """Hold the leader's work up."""
        found = await self._take(Event.PAUSE, request, context)
        return pb.PauseMigrationResponse(migration=found)

    async def ResumeMigration(
        self, request: pb.ResumeMigrationRequest, context: Context
    ) -> pb.ResumeMigrationResponse:
        """Let the leader go on."""
        found = await self._take(Event.RESUME, request, context)
        return pb.ResumeMigrationResponse(migration=found)

    async def ValidateMigration(
        self, request: pb.ValidateMigrationRequest, context: Context
    ) -> pb.ValidateMigrationResponse:
        """Ask for a measurement."""
        found = await self._take(Event.VALIDATE, request, context)
        return pb.ValidateMigrationResponse(migration=found)

    async def RollbackMigration(
        self, request: pb.RollbackMigrationRequest, context: Context
    ) -> pb.RollbackMigrationResponse:
        """Let the old model serve again."""
        found = await self._take(Event.ROLLBACK, request, context)
        return pb.RollbackMigrationResponse(migration=found)

    async def AbortMigration(
        self, request: pb.AbortMigrationRequest, context: Context
    ) -> pb.AbortMigrationResponse:
        """Go back to the old model and delete the vectors of the new one."""
        found = await self._take(Event.ABORT, request, context)
        return pb.AbortMigrationResponse(migration=found)

    async def PurgeMigration(
        self, request: pb.PurgeMigrationRequest, context: Context
    ) -> pb.PurgeMigrationResponse:
        """Delete the vectors of the old model."""
        found = await self._take(Event.PURGE, request, context)
        return pb.PurgeMigrationResponse(migration=found)

    async def _take(
        self, event: Event, request: _Order, context: Context, *, force: bool = False
    ) -> pb.Migration:
        found = await self._migrations.order(
            request.collection,
            event,
            who=request.who,
            why=request.why,
            force=force,
            deadline=deadline_of(context),
        )
        return wire.encode_migration(found)
