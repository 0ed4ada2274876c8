"""Answers searches on one view of a collection, in five steps.

1. Which rows may be found: those that are alive and for which the filter is true. The planner chooses the way.
2. Rows of the graph: the nearest by the graph, one call for all searches of one width, or all of them scored
   (``candidates``).
3. Rows of the tail, which no graph holds yet: all scored.
4. Exact scores of what was found, from the vectors as they were written: first by the collection's metric, which
   decides what counts as found, then by the one asked for (``ranking``).
5. Order by score and id, and the page asked for.

What takes long there, or would wait for the graph, is a ``Step`` to be carried out in a thread. So searches without a
filter can be answered on the event loop but for those (see ``batcher``), and all in one thread (``carried_out``).
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from indexer.reads import Fields, Row, Search
from indexer.serving.candidates import Way, in_graph, members_of, with_tail
from indexer.serving.planner import Planner
from indexer.serving.ranking import Stage, rescored, scored
from indexer.serving.steps import Steps, carried_out
from indexer.serving.table import View

# Rows that are scored and put in order where others wait, and numbers of their vectors, as often as they are read: a
# millisecond's work or two. More make a step.
_SCORED_BRIEFLY = 512
_SCORED_NUMBERS = 2**18


def answer(
    view: View,
    searches: Sequence[Search],
    fields: Fields,
    planner: Planner,
    *,
    on_way: Callable[[Way], None] = lambda _: None,
) -> list[list[Row]]:
    """As ``answering``, all of it here."""
    return carried_out(answering(view, searches, fields, planner, on_way=on_way))


def answering(
    view: View,
    searches: Sequence[Search],
    fields: Fields,
    planner: Planner,
    *,
    unfinished: set[int] | None = None,
    on_way: Callable[[Way], None] = lambda _: None,
    on_stage: Callable[[Stage, float], None] = lambda *_: None,
) -> Steps[list[list[Row]]]:
    """The rows of each search, best first and equal scores by id.

    Args:
        view: what is searched.
        searches: of vectors of the collection's dimension.
        fields: what comes back of each row.
        planner: chooses between the graph and scoring all.
        unfinished: gets the places of searches for which the first try found too few, and whose rows mean nothing.
            None: they are gone on with.
        on_way: told for each search how it was answered.
        on_stage: told how many seconds each stage took, waits for threads included: "filter" is step 1, "nearest" 2 and
            3, "score" 4 and the order, "rows" the page.
    """
    if not searches:
        return []
    started = time.perf_counter()
    members = {where: members_of(view, where) for where in {search.where for search in searches}}
    filtered = time.perf_counter()
    found = yield from in_graph(view, searches, members, planner, unfinished=unfinished, on_way=on_way)
    if any(len(each.tail) for each in members.values()):
        found = yield partial(with_tail, view, searches, members, found)
    nearest = time.perf_counter()
    on_stage("filter", filtered - started)
    on_stage("nearest", nearest - filtered)
    rows = [each.rows for each in found]
    count = sum(map(len, rows)) * (1 + rescored(view, searches) + fields.vector)
    large = count > _SCORED_BRIEFLY or count * view.graph.dimension > _SCORED_NUMBERS
    scoring = scored(view, searches, rows, fields, on_stage, began=nearest, may_wait=large)
    if large:
        many: list[list[Row]] = yield partial(carried_out, scoring)
        return many
    few = yield from scoring
    return few
