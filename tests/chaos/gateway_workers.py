"""What clients of a gateway under load do: one of these a thread, call after call."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from tests.chaos.checker import Kind
from tests.chaos.gateway_load import Load, Worker
from tests.chaos.gateway_rig import COLLECTION
from tests.pictures import noise

_STREAM_ITEMS, _BATCH, _OWN = 12, 4, 2
EDIT_KEY = "edit"


class Searcher(Worker):
    """Texts, pictures and stored items."""

    def step(self, load: Load, rng: np.random.Generator) -> str:
        self.stub.Search(_search(load, rng), timeout=self.patience_s)
        return "search"


class Hurried(Worker):
    """Searches and lists of one who does not wait for what is away."""

    patience_s = 0.6

    def step(self, load: Load, rng: np.random.Generator) -> str:
        if rng.random() < 0.5:
            self.stub.ListItems(_page(), timeout=self.patience_s)
            return "hurried list"
        self.stub.Search(_by_text(rng), timeout=self.patience_s)
        return "hurried search"


class Watcher(Worker):
    """Asks what is down: the one call that rides nothing out, and says so while the others still try again."""

    patience_s = 3.0
    early_s = 0.1 * patience_s + 0.05  # the gateway keeps a tenth of its time for the answer

    def step(self, load: Load, rng: np.random.Generator) -> str:
        for service in self.stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=self.patience_s).services:
            if not service.serving:
                load.judge(service.error.status, self)
        return "status"


class Ingester(Worker):
    """A stream after the other; one that broke is gone on with where its last checkpoint was."""

    patience_s = 30.0

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()
        self._sent: list[gateway_pb2.IndexItem] = []
        self._unanswered: set[str] = set()
        self._token, self._done = "", 0

    def step(self, load: Load, rng: np.random.Generator) -> str:
        if not self._unanswered:
            numbers = itertools.islice(self._numbers, _STREAM_ITEMS)
            self._sent = [load.item(number, load.new_id(self.number, number)) for number in numbers]
            self._unanswered = {item.id for item in self._sent}
            self._token, self._done = "", 0
        for answer in self.stub.IndexImages(self._messages(), timeout=self.patience_s):
            if answer.HasField("result"):
                load.take(answer.result)
                self._unanswered.discard(answer.result.id)
            elif answer.HasField("checkpoint"):
                self._token, self._done = answer.checkpoint.resume_token, answer.checkpoint.items_done
                if early := self._unanswered & {item.id for item in self._sent[: self._done]}:
                    load.wrong(Kind.LOST, f"a checkpoint stands for unanswered items: {early}")
        if self._unanswered:
            load.wrong(Kind.LOST, f"a stream ended well, with {len(self._unanswered)} items unanswered")
        return "ingest"

    def _messages(self) -> Iterator[gateway_pb2.IndexImagesRequest]:
        start = gateway_pb2.IndexStart(collection=COLLECTION, create_collection=True, resume_token=self._token)
        yield gateway_pb2.IndexImagesRequest(start=start)
        for item in self._sent[self._done :]:
            yield gateway_pb2.IndexImagesRequest(item=item)


class Batcher(Worker):
    """Many searches in one call, zero-shot classification, pictures without a stream."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()

    def step(self, load: Load, rng: np.random.Generator) -> str:
        kind = rng.random()
        if kind < 0.3:
            request = _batch(load, self.number, itertools.islice(self._numbers, _BATCH))
            for result in self.stub.IndexBatch(request, timeout=self.patience_s).results:
                load.take(result)
            return "index batch"
        if kind < 0.6:
            image = types_pb2.Image(encoded=noise(int(rng.integers(1_000))))
            labelling = gateway_pb2.Labelling(labels=["noise", "a cat", "a dog"])
            inputs = [gateway_pb2.ClassifyInput(image=image)]
            classify = gateway_pb2.ClassifyRequest(collection=COLLECTION, inputs=inputs, labelling=labelling)
            self._judge_each(load, self.stub.Classify(classify, timeout=self.patience_s).results)
            return "classify"
        searches = [_search(load, rng) for _ in range(_BATCH)]
        answer = self.stub.BatchSearch(gateway_pb2.BatchSearchRequest(searches=searches), timeout=self.patience_s)
        self._judge_each(load, answer.results)
        return "batch"

    def _judge_each(
        self, load: Load, results: Iterable[gateway_pb2.BatchSearchResult] | Iterable[gateway_pb2.Classification]
    ) -> None:
        for result in results:
            if result.HasField("error"):
                load.judge(result.error.status, self)


class Reader(Worker):
    """Reads of what is stored: by ids, by page, and for duplicates."""

    def step(self, load: Load, rng: np.random.Generator) -> str:
        kind, ids = rng.random(), load.some_stored(rng, 20)
        if ids and kind < 0.4:
            request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=ids)
            _none_missing(load, self.stub.GetItems(request, timeout=self.patience_s))
            return "get"
        if kind < 0.7:
            self.stub.ListItems(_page(), timeout=self.patience_s)
            return "list"
        duplicates = gateway_pb2.FindDuplicatesRequest(collection=COLLECTION)
        for answer in self.stub.FindDuplicates(duplicates, timeout=self.patience_s):
            for group in answer.groups:
                pictures = {each.item.metadata.fields["sha256"].string_value for each in group.items}
                if len(pictures) > 1 or group.count < len(group.items):
                    load.wrong(Kind.WRONG_ANSWER, f"no exact duplicates: {group}")
        return "duplicates"


class ByWeb(Worker):
    """The same by HTTP and JSON."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()

    def step(self, load: Load, rng: np.random.Generator) -> str:
        kind, ids = rng.random(), load.some_stored(rng, 20)
        if kind < 0.4:
            self.http.call("Search", _search(load, rng), gateway_pb2.SearchResponse(), self.patience_s)
            return "web search"
        if kind < 0.6:
            self.http.call("ListItems", _page(), gateway_pb2.ListItemsResponse(), self.patience_s)
            return "web list"
        if ids and kind < 0.8:
            request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=ids)
            _none_missing(load, self.http.call("GetItems", request, gateway_pb2.GetItemsResponse(), self.patience_s))
            return "web get"
        batch = _batch(load, self.number, itertools.islice(self._numbers, _BATCH))
        answer = self.http.call("IndexBatch", batch, gateway_pb2.IndexBatchResponse(), self.patience_s)
        for result in answer.results:
            load.take(result)
        return "web index batch"


class Editor(Worker):
    """Sets labels and metadata of items of its own, in turn.

    What was acknowledged has to be so. After a call of which it does not know what came of it, it takes other items.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers, self._edits = itertools.count(), itertools.count(1)
        self._calls: Iterator[Callable[[Load], str]] = iter(())
        self._ids: list[str] = []
        self._edit = 0

    def step(self, load: Load, rng: np.random.Generator) -> str:
        call = next(self._calls, None)
        if call is None:
            self._calls = iter((self._make, *(self._label, self._set, self._look) * 3))
            call = next(self._calls)
        known = {item_id: load.edited.pop(item_id) for item_id in self._ids if item_id in load.edited}
        calls, self._calls = self._calls, iter(())
        what = call(load)  # if it fails, that was all of these items
        self._calls = calls
        if call == self._look:
            load.edited |= known
        return what

    def _make(self, load: Load) -> str:
        request = _batch(load, self.number, itertools.islice(self._numbers, _OWN))
        self._ids = [item.id for item in request.items]
        for result in self.stub.IndexBatch(request, timeout=self.patience_s).results:
            load.take(result)
        return "index to edit"

    def _label(self, load: Load) -> str:
        self._edit = next(self._edits)
        labels = gateway_pb2.LabelList(labels=[f"edit {self._edit}"])
        request = gateway_pb2.UpdateLabelsRequest(collection=COLLECTION, ids=self._ids, set=labels)
        self._none_missing(load, self.stub.UpdateLabels(request, timeout=self.patience_s).missing_ids)
        return "label"

    def _set(self, load: Load) -> str:
        number = metadata_pb2.Metadata(fields={EDIT_KEY: metadata_pb2.Value(int_value=self._edit)})
        updates = [gateway_pb2.MetadataUpdate(id=item_id, set=number) for item_id in self._ids]
        request = gateway_pb2.UpdateMetadataRequest(collection=COLLECTION, updates=updates)
        self._none_missing(load, self.stub.UpdateMetadata(request, timeout=self.patience_s).missing_ids)
        load.edited |= dict.fromkeys(self._ids, self._edit)
        return "set metadata"

    def _look(self, load: Load) -> str:
        request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=self._ids)
        answer = self.stub.GetItems(request, timeout=self.patience_s)
        _none_missing(load, answer)
        for item in answer.items:
            if why := not_as_edited(item, self._edit):
                load.wrong(Kind.ALTERED, why)
        return "look at edits"

    @staticmethod
    def _none_missing(load: Load, missing: Iterable[str]) -> None:
        for item_id in missing:
            load.wrong(Kind.LOST, f"{item_id} was acknowledged and cannot be edited")


class Deleter(Worker):
    """Stores items of its own and deletes them; what has not been acknowledged as stored is left to itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()
        self._ids: list[str] = []

    def step(self, load: Load, rng: np.random.Generator) -> str:
        if self._ids:
            deletion = gateway_pb2.DeleteItemsRequest(collection=COLLECTION, ids=self._ids)
            self.stub.DeleteItems(deletion, timeout=self.patience_s)
            load.deleted |= set(self._ids)
            self._ids = []
            return "delete"
        if load.deleted and rng.random() < 0.3:
            ids = rng.choice(sorted(load.deleted), min(20, len(load.deleted)), replace=False)
            request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=[str(item_id) for item_id in ids])
            for item in self.stub.GetItems(request, timeout=self.patience_s).items:
                load.wrong(Kind.UNDELETED, f"{item.id} was deleted and is there")
            return "look for deleted"
        batch = _batch(load, self.number, itertools.islice(self._numbers, _OWN))
        results = self.stub.IndexBatch(batch, timeout=self.patience_s).results
        self._ids = [result.id for result in results if result.HasField("stored")]
        return "index to delete"


# A thread each.
WORKERS = (Searcher, Hurried, Watcher, Ingester, Ingester, Batcher, Reader, ByWeb, Editor, Deleter)


def not_as_edited(item: gateway_pb2.Item, number: int) -> str:
    """What is wrong with an item that was edited; empty: nothing."""
    found = item.metadata.fields[EDIT_KEY].int_value if EDIT_KEY in item.metadata.fields else None
    if list(item.labels) == [f"edit {number}"] and found == number:
        return ""
    return f"{item.id} was set to {number} and is {list(item.labels)}, {found}"


def _none_missing(load: Load, answer: gateway_pb2.GetItemsResponse) -> None:
    for item_id in answer.missing_ids:
        load.wrong(Kind.LOST, f"{item_id} was acknowledged and is not there")


def _batch(load: Load, worker: int, numbers: Iterable[int]) -> gateway_pb2.IndexBatchRequest:
    items = [load.item(number, load.new_id(worker, number)) for number in numbers]
    return gateway_pb2.IndexBatchRequest(collection=COLLECTION, items=items)


def _page() -> gateway_pb2.ListItemsRequest:
    return gateway_pb2.ListItemsRequest(collection=COLLECTION, page_size=50)


def _by_text(rng: np.random.Generator) -> gateway_pb2.SearchRequest:
    terms = [gateway_pb2.Term(text=f"picture number {rng.integers(10_000)}")]
    return gateway_pb2.SearchRequest(collection=COLLECTION, terms=terms, top_k=5)


def _search(load: Load, rng: np.random.Generator) -> gateway_pb2.SearchRequest:
    request, kind = _by_text(rng), rng.random()
    if kind < 0.3:
        request.terms[0].image.encoded = noise(int(rng.integers(1_000)))
    elif kind < 0.5 and (ids := load.some_stored(rng, 1)):
        request.terms[0].id = ids[0]
    return request
