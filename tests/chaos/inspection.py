"""Everything the indexer holds, looked at while nobody writes."""

import math

import numpy as np

from tests.chaos.checker import Below, Kind, Recall, Truth, Violation, check_items
from tests.chaos.client import Client
from tests.chaos.items import Source
from tests.chaos.ledger import Content, Ledger, State

QUERIES, K = 16, 10
FILTERS = (None, Below("n", 500.0), Below("n", 100.0), Below("n", 20.0), Below("n", 1.0))
# Of the nearest of one inspection: 800 neighbours. An index that loses items falls far below it.
LEAST_RECALL = 0.97
# What is wrong where the items change between two looks, and each of them is possible.
_BETWEEN = {Kind.MISCOUNTED, Kind.WRONG_ANSWER}


def inspect(client: Client, ledger: Ledger, seed: int, since: float = math.inf) -> tuple[list[Violation], Recall]:
    """Compares items, counts and answers with the ledger, which takes over what it was in doubt about.

    But for what was sent after ``since`` and got no answer: that may still be carried out. If that comes between two of
    the looks, counts and answers do not fit what was listed: then all are taken once more, and compared with the ledger
    as it was.
    """
    wrong, recall, states = _look(client, ledger, seed)
    if wrong and {each.kind for each in wrong} <= _BETWEEN and ledger.sent_after(since):
        wrong, recall, states = _look(client, ledger, seed)
    ledger.found(states, since)
    return wrong, recall


def _look(client: Client, ledger: Ledger, seed: int) -> tuple[list[Violation], Recall, dict[str, State]]:
    wrong, states = check_items(ledger, client.list_all(), client.count())
    truth = Truth.of((item_id, state) for item_id, state in states.items() if isinstance(state, Content))
    queries = list(Source((seed, 2000)).vectors(QUERIES))
    recall = Recall()
    for where in FILTERS:
        count, members = client.count(where), int(truth.members(where).sum())
        if count != members:
            wrong.append(Violation(Kind.MISCOUNTED, f"{count} items with {where}; there are {members}"))
        for query, hits in zip(queries, client.query(queries, where, K), strict=True):
            found, share = truth.check(query, where, K, hits)
            wrong += found
            recall.add(share)
    # An item is its own nearest neighbour, wherever it lies in the index.
    rng = np.random.default_rng((seed, 2001))
    rows = rng.choice(len(truth.ids), min(QUERIES, len(truth.ids)), replace=False)
    for row, hits in zip(rows, client.query([truth.vectors[row] for row in rows], None, K), strict=True):
        found, share = truth.check(truth.vectors[row], None, K, hits)
        wrong += found
        recall.add(share)
    if recall.share < LEAST_RECALL:
        wrong.append(Violation(Kind.WRONG_ANSWER, f"recall@{K} is {recall.share:.3f}"))
    return wrong, recall, states
