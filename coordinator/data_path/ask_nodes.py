"""The same question to all live nodes at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from annheal.coordinator.data_path.router import Router
from annheal.errors import AnnhealError
from annheal.rpc.port import ShardNode

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class NodeAnswers(Generic[AnswerT]):
    """What nodes answered, by node id; why the others did not is in `errors`."""

    answers: Mapping[str, AnswerT]
    errors: Mapping[str, str]


async def ask_nodes(
    router: Router,
    node_ids: Iterable[str],
    ask: Callable[[ShardNode], Awaitable[AnswerT]],
    *,
    timeout_s: float,
    what: str,
) -> NodeAnswers[AnswerT]:
    """Ask every node; both parts of the answer are in the order of the ids.

    A node that fails or does not answer in `timeout_s` seconds is in `errors`; nothing is raised
    for it. `what` says in its message what it did not do, for example "describe its shards".
    """
    answers: dict[str, AnswerT] = {}
    errors: dict[str, str] = {}

    async def one(node_id: str) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                answers[node_id] = await ask(router.link(node_id).node)
        except TimeoutError:
            errors[node_id] = f"node {node_id!r} did not {what} in {timeout_s:g} s"
        except AnnhealError as error:
            errors[node_id] = error.message

    names = sorted(node_ids)
    await asyncio.gather(*map(one, names))
    return NodeAnswers(
        {name: answers[name] for name in names if name in answers},
        {name: errors[name] for name in names if name in errors},
    )
