"""Classify and SuggestLabels: which of given labels fit pictures best, and those of a collection."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ItemFields, ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.deadline import Deadline
from chassis.errors import LikenessError, in_request, invalid, to_item_error
from chassis.vectors import Array, from_proto
from gateway.embedding import Embedding
from gateway.indexer_reads import IndexerReads
from gateway.labelling import MAX_LABELS, Chooser, Labelling, LabelVectors
from gateway.requests import (
    at_token,
    collection_name,
    expected_fingerprint,
    mismatch,
    of_collection,
    patience,
    renamed,
    shutting_down,
)
from gateway.streams import STALLED_S, admitted, patient, unless

MAX_INPUTS = 256
# Labels in one message: of 1,024 bytes each they are about 20 MiB.
MAX_CHOSEN = 20_000
_PAGE = 1000

# By when a stream, which may have no deadline, has the vectors of its labels; 100,000 texts take the starter minutes.
_LABELS_S = 3600.0

Write = Callable[[gateway_pb2.SuggestLabelsResponse], Awaitable[None]]


@dataclass(frozen=True)
class Classify:
    """Compares pictures with labels.

    Attributes:
        embedding: gives vectors of pictures.
        indexer: gives stored ones.
        vectors: gives those of labels.
        stopping: is set when the gateway stops, which ends streams.
        longest_call_s: longest wait for one call of a stream, in seconds.
        streams: how many streams may be open at once.
        stalled_s: how long a message of a stream waits for its reader, in seconds.
    """

    embedding: Embedding
    indexer: IndexerReads
    vectors: LabelVectors
    stopping: asyncio.Event
    longest_call_s: float
    streams: asyncio.Semaphore
    stalled_s: float = STALLED_S

    async def __call__(self, request: gateway_pb2.ClassifyRequest, deadline: Deadline) -> gateway_pb2.ClassifyResponse:
        """Every input gets labels or an error of its own.

        Raises:
            LikenessError: the labels are bad, too much is asked for, also of the key's rate, the collection is unknown
                or of another model, or a service cannot be reached.
        """
        labelling = Labelling.of(request.labelling)
        top_k = _top_k(request.top_k, 5)
        _check_inputs(request, top_k)
        expected = expected_fingerprint(request)
        model = await self.embedding.embedder.model(deadline.left())
        if expected is not None and expected.digest != model.fingerprint.digest:
            raise mismatch(model.fingerprint, expected, "the model that the request expects")
        # The labels first: if there are too many new ones for the key's rate, no picture is embedded in vain.
        chooser = await self._chooser(labelling, model, deadline, taken=len(request.inputs))
        outcomes = await self._read(request, model, deadline)
        response = gateway_pb2.ClassifyResponse(fingerprint=model.fingerprint, scale=chooser.scale)
        rows = [outcome for outcome in outcomes if not isinstance(outcome, LikenessError)]
        chosen = iter(await asyncio.to_thread(chooser, np.stack(rows), top_k) if rows else [])
        for outcome in outcomes:
            if isinstance(outcome, LikenessError):
                response.results.add(error=to_item_error(outcome))
            else:
                response.results.add(labels=next(chosen))
        return response

    async def suggest(self, request: gateway_pb2.SuggestLabelsRequest, write: Write, deadline: Deadline) -> None:
        """Labels for a collection's items, page by page.

        Raises:
            LikenessError: as ``__call__``; also OVERLOADED, SHUTTING_DOWN, and DEADLINE_EXCEEDED when nobody reads what
                is written.
        """
        go_on = "go on at the last next_page_token that came"
        async with admitted(self.streams, "streams of suggestions"):
            await self._suggest(request, patient(write, self.stalled_s, go_on), deadline, f"{go_on} in a new stream")

    async def _suggest(
        self, request: gateway_pb2.SuggestLabelsRequest, write: Write, deadline: Deadline, what_now: str
    ) -> None:
        labelling = Labelling.of(request.labelling)
        top_k = _top_k(request.top_k, 1)
        least = request.min_probability if request.HasField("min_probability") else 0.0
        if not 0 <= least <= 1:
            raise invalid("min_probability", f"{least:g}; expected 0 to 1")
        where = request.filter if request.HasField("filter") else None
        model = await self.embedding.embedder.model(patience(deadline, self.longest_call_s))
        # By its name, so that a moved alias does not matter from here on.
        name = await self._of_model(collection_name(request.collection), model.fingerprint, deadline)
        counting = indexer_pb2.CountItemsRequest(collection=name, filter=where)
        total = await self.indexer.count(counting, patience(deadline, self.longest_call_s))
        choosing = self._chooser(labelling, model, Deadline(patience(deadline, _LABELS_S)), taken=1)
        chooser = await unless(self.stopping, choosing, what_now)
        done, token, page_size = 0, request.page_token, min(_PAGE, max(1, MAX_CHOSEN // top_k))
        while True:
            if self.stopping.is_set():
                raise shutting_down(what_now)
            listing = indexer_pb2.ListItemsRequest(
                collection=name, filter=where, page_size=page_size, page_token=token, fields=ItemFields(vector=True)
            )
            with at_token(token, request.page_token, "SuggestLabels"):
                page = await self.indexer.list(listing, patience(deadline, self.longest_call_s))
            response = await asyncio.to_thread(_suggestions, page.items, chooser, top_k, least)
            done, token = done + len(page.items), page.next_page_token
            response.done, response.total, response.next_page_token = done, max(done, total), token
            await write(response)
            if not token:
                return

    async def _chooser(
        self, labelling: Labelling, model: embedder_pb2.GetModelResponse, deadline: Deadline, *, taken: int
    ) -> Chooser:
        vectors = await self.vectors.of(labelling, model, deadline, taken=taken)
        return Chooser(labelling.labels, vectors, labelling.scale_for(model.fingerprint.model))

    async def _read(
        self, request: gateway_pb2.ClassifyRequest, model: embedder_pb2.GetModelResponse, deadline: Deadline
    ) -> list[Array | LikenessError]:
        """The vector of each input, or why it has none."""
        found: dict[int, Vector | LikenessError] = {}
        images = [i for i, each in enumerate(request.inputs) if each.WhichOneof("input") == "image"]
        stored: list[int] = []
        for i, each in enumerate(request.inputs):
            if each.WhichOneof("input") == "id":
                try:
                    names.check_item_id(each.id, f"inputs[{i}].id")
                    stored.append(i)
                except LikenessError as error:
                    found[i] = error
        if images:
            inputs = [embedder_pb2.EmbedInput(image=request.inputs[i].image) for i in images]
            embedded = await self.embedding(inputs, deadline, limits=model.limits, digest=model.fingerprint.digest)
            if embedded.fingerprint.digest != model.fingerprint.digest:
                raise mismatch(embedded.fingerprint, model.fingerprint, "the model of the labels")
            for i, outcome in zip(images, embedded.outcomes, strict=True):
                failed = isinstance(outcome, LikenessError)
                found[i] = _of_input(outcome, i) if failed else outcome  # type: ignore[arg-type]
        if stored:
            name = await self._of_model(collection_name(request.collection), model.fingerprint, deadline)
            ids = dict.fromkeys(request.inputs[i].id for i in stored)
            read = indexer_pb2.GetItemsRequest(collection=name, ids=ids, fields=ItemFields(vector=True))
            try:
                answer = await self.indexer.get(read, deadline.left())
            except LikenessError as error:
                raise in_request(error, lambda field: field.replace("ids", "inputs", 1)) from error
            vectors = {item.id: item.vector for item in answer.items}
            for i in stored:
                found[i] = vectors.get(request.inputs[i].id) or _not_found(request.inputs[i].id, i, name)
        return [
            outcome if isinstance(outcome, LikenessError) else from_proto(outcome, f"inputs[{i}]")
            for i, outcome in sorted(found.items())
        ]

    async def _of_model(self, name: str, fingerprint: ModelFingerprint, deadline: Deadline) -> str:
        """The name of the collection that ``name`` stands for, if it is of this model."""
        collection = await self.indexer.collection(name, patience(deadline, self.longest_call_s))
        if collection.fingerprint.digest != fingerprint.digest:
            raise mismatch(fingerprint, collection.fingerprint, of_collection(name))
        return collection.name


def _suggestions(
    items: Sequence[indexer_pb2.Item], chooser: Chooser, top_k: int, least: float
) -> gateway_pb2.SuggestLabelsResponse:
    response = gateway_pb2.SuggestLabelsResponse(scale=chooser.scale)
    if items:
        vectors = np.stack([from_proto(item.vector, "item.vector") for item in items])
        for item, labels in zip(items, chooser(vectors, top_k, least), strict=True):
            if labels:
                response.suggestions.add(id=item.id, labels=labels)
    return response


def _check_inputs(request: gateway_pb2.ClassifyRequest, top_k: int) -> None:
    if not request.inputs:
        raise invalid("inputs", f"is empty; expected 1 to {MAX_INPUTS} inputs")
    if len(request.inputs) > MAX_INPUTS:
        description = f"{len(request.inputs)} inputs; expected 1 to {MAX_INPUTS}"
        raise invalid("inputs", description, error_pb2.REASON_BATCH_TOO_LARGE)
    if len(request.inputs) * top_k > MAX_CHOSEN:
        description = (
            f"{len(request.inputs)} inputs with {top_k:,} labels each; at most {MAX_CHOSEN:,} labels are given "
            "together: send several calls, or lower top_k"
        )
        raise invalid("inputs", description, error_pb2.REASON_BATCH_TOO_LARGE)
    for i, each in enumerate(request.inputs):
        if each.WhichOneof("input") is None:
            raise invalid(f"inputs[{i}]", "is empty; expected a picture or an id")


def _top_k(asked: int, default: int) -> int:
    if asked > MAX_LABELS:
        raise invalid("top_k", f"{asked:,}; expected 1 to {MAX_LABELS:,}, or 0 for {default}")
    return asked or default


def _of_input(error: LikenessError, place: int) -> LikenessError:
    """An embedder's error, with the name that its input has in a ClassifyRequest."""
    return renamed(error, lambda field: re.sub(r"^inputs\[\d+\]", f"inputs[{place}]", field))


def _not_found(item_id: str, place: int, collection: str) -> LikenessError:
    message = f"inputs[{place}].id: there is no item {item_id[:200]!r} in collection {collection!r}"
    return LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, message)
