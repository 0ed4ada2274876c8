"""The state of the services, the model and the collections; answers also while a service is down."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from likeness.gateway.v1 import gateway_pb2

from chassis import __version__
from chassis.errors import LikenessError, to_item_error
from gateway.backends import Embedder, Indexer, Readers

Answer = TypeVar("Answer")

# A service that has not answered by then is reported as not serving.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Status:
    """Asks the services at once.

    Attributes:
        embedder: one of them.
        indexer: the one that writes.
        readers: where reads go instead; None: they do not.
        limits: the gateway's own.
    """

    embedder: Embedder
    indexer: Indexer
    readers: Readers | None
    limits: gateway_pb2.GatewayLimits

    async def __call__(self, timeout_s: float) -> gateway_pb2.GetStatusResponse:
        """The state of the whole, within ``timeout_s`` seconds."""
        patience = min(PATIENCE_S, timeout_s * 0.9)
        model, collections, read = await asyncio.gather(
            _outcome(self.embedder.model(patience, ride_out=False)),
            _outcome(self.indexer.collections(patience)),
            _outcome(self._read(patience)),
        )
        response = gateway_pb2.GetStatusResponse(version=__version__, limits=self.limits)
        for service, outcome in ((self.embedder, model), (self.indexer, collections), (self.readers, read)):
            if service is None:
                continue
            status = response.services.add(name=service.name, address=service.address)
            if isinstance(outcome, LikenessError):
                status.error.CopyFrom(to_item_error(outcome))
            else:
                status.serving = True
        if not isinstance(model, LikenessError):
            model.limits.max_message_bytes = min(model.limits.max_message_bytes, self.limits.max_message_bytes)
            response.model.CopyFrom(
                gateway_pb2.ModelStatus(
                    fingerprint=model.fingerprint, device=model.device, precision=model.precision, limits=model.limits
                )
            )
        if not isinstance(collections, LikenessError):
            for found in collections:
                response.collections.add(
                    name=found.name,
                    fingerprint=found.fingerprint,
                    count=found.count,
                    searchable=response.HasField("model")
                    and found.fingerprint.digest == response.model.fingerprint.digest,
                )
        return response

    async def _read(self, timeout_s: float) -> None:
        if self.readers is not None:
            await self.readers.status(timeout_s)


async def _outcome(call: Awaitable[Answer]) -> Answer | LikenessError:
    try:
        return await call
    except LikenessError as error:
        return error
