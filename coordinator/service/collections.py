"""The service of collections."""

from __future__ import annotations

from typing import Final

from annheal.coordinator.app import Coordinator
from annheal.coordinator.service.pages import page_rows
from annheal.rpc.server import Context, deadline_of
from annheal.runtime.deadline import Deadline
from annheal.v1 import collections_pb2
from annheal.wire.lifecycle import collections as wire_collections

MODEL_KNOWN_TIMEOUT_S: Final = 5.0
"""Time for the nodes to hear of a model that was added; it is added all the same."""


class CollectionServicer:
    """`annheal.v1.CollectionService`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def CreateCollection(
        self, request: collections_pb2.CreateCollectionRequest, context: Context
    ) -> collections_pb2.CreateCollectionResponse:
        """Create a collection; returns once its shards are served."""
        spec = wire_collections.decode_create_collection(
            request, collection_id="", created_at_s=0.0
        )
        timeout_s = self._coordinator.settings.create_timeout_s
        created = await self._coordinator.collections.create(
            spec, deadline=deadline_of(context, timeout_s=timeout_s)
        )
        return collections_pb2.CreateCollectionResponse(
            collection=wire_collections.encode_collection(created)
        )

    async def GetCollection(
        self, request: collections_pb2.GetCollectionRequest, context: Context
    ) -> collections_pb2.GetCollectionResponse:
        """Describe one collection."""
        found = await self._coordinator.collections.get(request.name)
        response = collections_pb2.GetCollectionResponse(
            collection=wire_collections.encode_collection(found)
        )
        if request.with_status:
            status = await self._coordinator.admin.collection_status(found)
            response.status.CopyFrom(wire_collections.encode_collection_status(status))
        return response

    async def ListCollections(
        self, request: collections_pb2.ListCollectionsRequest, context: Context
    ) -> collections_pb2.ListCollectionsResponse:
        """List collections by name; the token of a page is its last name."""
        rows_max = page_rows(request.page_size)
        rest = [one for one in self._coordinator.collections.all() if one.name > request.page_token]
        page = rest[:rows_max]
        return collections_pb2.ListCollectionsResponse(
            collections=[wire_collections.encode_collection(one) for one in page],
            next_page_token=page[-1].name if len(rest) > rows_max else "",
        )

    async def UpdateCollection(
        self, request: collections_pb2.UpdateCollectionRequest, context: Context
    ) -> collections_pb2.UpdateCollectionResponse:
        """Change settings or build parameters."""
        changed = await self._coordinator.collections.update(
            request.name,
            lambda present: wire_collections.apply_update(request, collection=present),
            if_revision=request.if_revision if request.HasField("if_revision") else None,
            deadline=deadline_of(context),
        )
        return collections_pb2.UpdateCollectionResponse(
            collection=wire_collections.encode_collection(changed)
        )

    async def AddModel(
        self, request: collections_pb2.AddModelRequest, context: Context
    ) -> collections_pb2.AddModelResponse:
        """Add a model to a collection; returns once its nodes know it, or after a while."""
        model, text_model = wire_collections.decode_add_model(request)
        deadline = deadline_of(context)
        changed = await self._coordinator.collections.add_model(
            request.collection, model, text_model, deadline=deadline
        )
        await self._coordinator.reads.wait_for_model(
            changed, model.name, deadline=min(deadline, Deadline.after(MODEL_KNOWN_TIMEOUT_S))
        )
        return collections_pb2.AddModelResponse(
            collection=wire_collections.encode_collection(changed)
        )

    async def RemoveModel(
        self, request: collections_pb2.RemoveModelRequest, context: Context
    ) -> collections_pb2.RemoveModelResponse:
        """Remove a model that does not serve."""
        changed = await self._coordinator.collections.remove_model(
            request.collection, request.model, deadline=deadline_of(context)
        )
        return collections_pb2.RemoveModelResponse(
            collection=wire_collections.encode_collection(changed)
        )

    async def DropCollection(
        self, request: collections_pb2.DropCollectionRequest, context: Context
    ) -> collections_pb2.DropCollectionResponse:
        """Drop a collection."""
        await self._coordinator.collections.drop(request.name, deadline=deadline_of(context))
        return collections_pb2.DropCollectionResponse()
