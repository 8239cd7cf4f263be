"""Calls that change the embedding model of a collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from annheal.client.arguments import as_count, as_flag, as_mapping, as_text
from annheal.client.connection import ServerConnection
from annheal.errors import InvalidArgument
from annheal.model.topology.migration.transitions import Event
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus
from annheal.wire.lifecycle.migration import encode_changes

SAMPLE_DEFAULT: Final = 1_000


class MigrationCalls:
    """Part of `AsyncClient`.

    `who` asks for a step, and `why`, are kept in the migration's history. Steps are idempotent:
    they are repeated when an answer was lost. A step that the phase does not allow raises
    `FailedPrecondition`, which names what is possible.
    """

    _connection: ServerConnection

    async def plan_migration(
        self,
        collection: str,
        to_model: str,
        *,
        sample_size: int = SAMPLE_DEFAULT,
        timeout_s: float | None = None,
    ) -> MigrationEstimate:
        """Estimate what a migration to the model `to_model` would take; changes nothing.

        Reads up to `sample_size` records and embeds a few of their texts.
        """
        as_text(collection, "collection")
        as_text(to_model, "to_model")
        as_count(sample_size, "sample_size", least=1)
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.plan_migration(
                collection, to_model, sample_size=sample_size, timeout_s=left_s
            ),
            deadline=self._connection.deadline(timeout_s),
        )

    async def start_migration(
        self,
        collection: str,
        to_model: str,
        *,
        settings: Mapping[str, Any] | None = None,
        who: str,
        why: str = "",
        timeout_s: float | None = None,
    ) -> MigrationStatus:
        """Start a migration to `to_model`, or return the one to it that has not ended.

        `settings` are fields of `MigrationSettings` and `GateThresholds`, such as
        `{"rows_per_second": 200, "lacking_share_max": 0.0}`.
        """
        fields = {"to_model": as_text(to_model, "to_model"), **_changes(settings)}
        return await self._step(Event.START, collection, who, why, fields, timeout_s)

    async def migration(
        self, collection: str, *, timeout_s: float | None = None
    ) -> MigrationStatus:
        """Describe the present or last migration of a collection; raises `NotFound`."""
        as_text(collection, "collection")
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.get_migration(collection, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def migrations(self, *, timeout_s: float | None = None) -> list[MigrationStatus]:
        """List the present or last migrations of all collections, by name."""
        api, deadline = self._connection.api, self._connection.deadline(timeout_s)
        found: list[MigrationStatus] = []
        token = ""
        while True:

            async def page(
                left_s: float, token: str = token
            ) -> tuple[tuple[MigrationStatus, ...], str]:
                return await api.list_migrations(page_token=token, timeout_s=left_s)

            part, token = await self._connection.read(page, deadline=deadline)
            found.extend(part)
            if not token:
                return found

    async def update_migration(
        self,
        collection: str,
        settings: Mapping[str, Any],
        *,
        who: str,
        why: str = "",
        timeout_s: float | None = None,
    ) -> MigrationStatus:
        """Change settings and thresholds while it runs; `settings` as in `start_migration`."""
        fields = _changes(settings)
        if not fields:
            raise InvalidArgument.of("settings", "names nothing to change")
        return await self._step(Event.UPDATE, collection, who, why, fields, timeout_s)

    async def commit_migration(
        self,
        collection: str,
        *,
        who: str,
        why: str = "",
        force: bool = False,
        timeout_s: float | None = None,
    ) -> MigrationStatus:
        """Let the new model serve.

        Raises `FailedPrecondition` with the numbers below the thresholds. With `force` it is
        committed all the same; `why` must say why then.
        """
        fields = {"force": as_flag(force, "force")}
        return await self._step(Event.COMMIT, collection, who, why, fields, timeout_s)

    async def pause_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Hold the leader's work up: no new tasks, and no step of its own."""
        return await self._step(Event.PAUSE, collection, who, why, {}, timeout_s)

    async def resume_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Let the leader go on."""
        return await self._step(Event.RESUME, collection, who, why, {}, timeout_s)

    async def validate_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Ask for a new measurement; the leader stores its report."""
        return await self._step(Event.VALIDATE, collection, who, why, {}, timeout_s)

    async def rollback_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Let the old model serve again, at once. It can be committed again later."""
        return await self._step(Event.ROLLBACK, collection, who, why, {}, timeout_s)

    async def abort_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Go back to the old model and delete the vectors of the new one. Possible until purge."""
        return await self._step(Event.ABORT, collection, who, why, {}, timeout_s)

    async def purge_migration(
        self, collection: str, *, who: str, why: str = "", timeout_s: float | None = None
    ) -> MigrationStatus:
        """Delete the vectors of the old model. There is no way back."""
        return await self._step(Event.PURGE, collection, who, why, {}, timeout_s)

    async def _step(
        self,
        event: Event,
        collection: str,
        who: str,
        why: str,
        fields: Mapping[str, Any],
        timeout_s: float | None,
    ) -> MigrationStatus:
        request = {
            "collection": as_text(collection, "collection"),
            "who": as_text(who, "who"),
            "why": as_text(why, "why"),
            **fields,
        }
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.change_migration(event, request, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )


def _changes(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a request that change `settings`; raises `InvalidArgument`."""
    given = as_mapping(settings, "settings")
    if not given:
        return {}
    changed, thresholds = encode_changes(given)
    return {"settings": changed, "thresholds": thresholds}
