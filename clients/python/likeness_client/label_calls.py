"""Labels: which fit, and changes of what items are called."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire, wire_labels
from likeness_client.backoff import OnReconnect, backoff_s, may_go_on
from likeness_client.connection import Connection, OnProgress
from likeness_client.errors import LikenessError
from likeness_client.filters import Filter
from likeness_client.items import Fingerprint, Term
from likeness_client.labelling import Classification, ClassifyResult, LabelSuggestion, LabelsUpdated
from likeness_client.lists import MAX_IDS, batches, listed, of_a_size

MAX_INPUTS = 256
MAX_PROBABILITIES = 20_000
DEFAULT_TOP_K = 5
MAX_INPUT_BYTES = 32 * 2**20


class LabelCalls(Connection):
    """The part of ``Client`` that classifies, and changes labels."""

    def update_labels(
        self,
        ids: Sequence[str] | None = None,
        *,
        where: str | Filter | None = None,
        all_items: bool = False,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        only: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        collection: str = "",
        on_progress: OnProgress | None = None,
    ) -> LabelsUpdated:
        """Changes what items are called, in as many calls as it takes; vectors and other metadata stay.

        An item's labels become: ``only`` if that is given, else what it has with the renames made; then without
        ``remove``; then with ``add``. If a call fails on the way, some items are changed: repeat it, which is harmless.

        Args:
            ids: the items by id. Exactly one of ``ids``, ``where`` and ``all_items`` says which.
            where: the items for which it is true.
            all_items: all items of the collection.
            add: labels that they get.
            remove: labels that they lose.
            only: the only labels that they have then, before ``remove`` and ``add``; an empty list: none.
            rename: what labels are to be called, by what they are called now; not beside ``only``.
            collection: its name; empty: the gateway's default, ``images``.
            on_progress: told after each call how many items were looked at.

        Raises:
            WhereError: ``where`` is no condition.
            LikenessError: the gateway refused, or could not be reached.
        """
        request = gateway_pb2.UpdateLabelsRequest(
            collection=collection,
            filter=wire.condition_to_proto(where),
            all_items=all_items,
            add=listed(add, "labels"),
            remove=listed(remove, "labels"),
            set=None if only is None else gateway_pb2.LabelList(labels=listed(only, "labels")),
            rename=wire_labels.renames_to_proto(rename or {}),
        )
        updated, unchanged = 0, 0
        missing: list[str] = []
        for answer in self._updates(request, listed(ids, "ids")):
            updated += answer.updated
            unchanged += answer.unchanged
            missing.extend(answer.missing_ids)
            if on_progress is not None:
                on_progress(updated + unchanged + len(missing), len(ids or ()))
        return LabelsUpdated(updated, unchanged, tuple(missing))

    def _updates(
        self, request: gateway_pb2.UpdateLabelsRequest, ids: Sequence[str] | None
    ) -> Iterator[gateway_pb2.UpdateLabelsResponse]:
        if ids is not None:
            for some in batches(ids, MAX_IDS):
                request.ids[:] = some
                yield self._call(self._stub.UpdateLabels, request)
            return
        while True:
            answer = self._call(self._stub.UpdateLabels, request)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def classify(
        self,
        pictures: Iterable[Term],
        labels: Sequence[str],
        *,
        templates: Sequence[str] = (),
        scale: float | None = None,
        top_k: int = 0,
        collection: str = "",
        expected_fingerprint: Fingerprint | None = None,
    ) -> ClassifyResult:
        """Says which of the labels fit pictures best, without training; in calls of at most 256 pictures and 32 MiB.

        Args:
            pictures: ``Term.image`` and ``Term.id``, at least one; their weights do not matter. They are taken as the
                calls go.
            labels: 1 to 1,000 to choose from; "none of these" has to be one of them to be an answer.
            templates: texts in which ``{}`` stands for the label; none: ``a photo of a {}.``.
            scale: what cosines are multiplied by before the softmax; None: what suits the model.
            top_k: most labels of each picture, 1 to 1,000; 0: 5.
            collection: that of the stored pictures; empty: the gateway's default, ``images``.
            expected_fingerprint: the model expected; None: that of the first call, in those that follow.

        Raises:
            TypeError: one of the pictures is a text or a vector; or a text is given for a list.
            LikenessError: the gateway refused, or could not be reached.
        """
        listed(pictures, "pictures", such_as="Term.image({!r})")
        results: list[Classification] = []
        answer = gateway_pb2.ClassifyResponse()
        most = max(1, min(MAX_INPUTS, MAX_PROBABILITIES // (top_k or DEFAULT_TOP_K)))
        groups = of_a_size(map(wire_labels.input_to_proto, pictures), most, MAX_INPUT_BYTES)
        expected = wire.fingerprint_to_proto(expected_fingerprint)
        first: list[gateway_pb2.ClassifyInput] = next(groups, [])  # with no picture the gateway says what is wrong
        for some in chain([first], groups):
            request = gateway_pb2.ClassifyRequest(
                collection=collection,
                expected_fingerprint=expected,
                inputs=some,
                labelling=wire_labels.labelling_to_proto(labels, templates, scale),
                top_k=top_k,
            )
            answer = self._call(self._stub.Classify, request)
            expected = expected or answer.fingerprint  # results of two models are not to be compared
            results.extend(map(wire_labels.classification_from_proto, answer.results))
        return ClassifyResult(tuple(results), wire.fingerprint_from_proto(answer.fingerprint), answer.scale)

    def suggest_labels(
        self,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = (),
        scale: float | None = None,
        min_probability: float | None = None,
        top_k: int = 0,
        where: str | Filter | None = None,
        collection: str = "",
        on_progress: OnProgress | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> Iterator[LabelSuggestion]:
        """Classifies the items of a collection by their stored vectors. Nothing is written: see ``update_labels``.

        A stream that breaks for a reason that may pass is opened again behind the last page, up to five times in a row.

        Args:
            labels: 1 to 1,000 to choose from.
            templates: texts in which ``{}`` stands for the label; none: ``a photo of a {}.``.
            scale: what cosines are multiplied by before the softmax; None: what suits the model.
            min_probability: only labels at least as probable; items without one are left out.
            top_k: most labels of each item, 1 to 1,000; 0: 1.
            where: only items for which it is true.
            collection: its name; empty: the gateway's default, ``images``.
            on_progress: told how far it is.
            on_reconnect: told before the stream is opened again.

        Returns:
            The suggestions, in the order of the items' ids.
        """
        request = gateway_pb2.SuggestLabelsRequest(
            collection=collection,
            filter=wire.condition_to_proto(where),
            labelling=wire_labels.labelling_to_proto(labels, templates, scale),
            min_probability=min_probability,
            top_k=top_k,
        )
        return self._suggestions(request, on_progress, on_reconnect)

    def _suggestions(
        self,
        request: gateway_pb2.SuggestLabelsRequest,
        on_progress: OnProgress | None,
        on_reconnect: OnReconnect | None,
    ) -> Iterator[LabelSuggestion]:
        failures, done_before, whole = 0, 0, False
        while not whole:
            done = done_before
            try:
                for page in self._follow(self._stub.SuggestLabels, request):
                    failures, done = 0, done_before + page.done
                    request.page_token = page.next_page_token
                    whole = not page.next_page_token
                    if on_progress is not None:
                        on_progress(done, page.total)
                    yield from map(wire_labels.suggestion_from_proto, page.suggestions)
            except LikenessError as error:
                if not whole:  # else nothing is missing but the stream's end
                    failures, done_before = failures + 1, done
                    wait_s = backoff_s(error, failures, may_pass=may_go_on(error))
                    if on_reconnect is not None:
                        on_reconnect(error, wait_s)
                    time.sleep(wait_s)
