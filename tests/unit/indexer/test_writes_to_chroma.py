"""Writers over a real Chroma: the mirror has what Chroma has, whatever happens."""

import asyncio
import random
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.metadata import Plain
from indexer.collections import Collection, Fingerprint, Metric
from indexer.filters import Node
from indexer.reads import Item
from indexer.store import ChromaStore
from indexer.surroundings import Surroundings
from indexer.writers import Writers
from indexer.writes import Update
from tests.processes import start_chroma
from tests.unit.indexer.conftest import DIGEST, Connected
from tests.unit.indexer.held_store import DictMirror
from tests.unit.indexer.model import true_for
from tests.unit.indexer.strategies import KEYS, metadata, nodes, plain
from tests.unit.indexer.test_chroma_reader import exact

IDS = [f"i{n}" for n in range(8)]
Model = dict[str, tuple[int, dict[str, Plain]]]

_small_ints = metadata.filter(
    lambda each: all(not isinstance(value, int) or abs(value) <= 2**53 for value in each.values())
)
upserts = st.dictionaries(st.sampled_from(IDS), st.tuples(st.integers(0, 3), _small_ints), min_size=1)
updates = st.lists(
    st.builds(
        Update,
        st.sampled_from(IDS),
        st.dictionaries(st.sampled_from(KEYS), plain.filter(lambda v: not isinstance(v, int) or abs(v) <= 2**53)),
        st.lists(st.sampled_from(KEYS)).map(tuple),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda update: update.id,
)
steps = st.one_of(upserts, updates, st.sets(st.sampled_from(IDS), min_size=1), nodes.filter(exact))


def item(item_id: str, position: int, of: dict[str, Plain]) -> Item:
    return Item(item_id, np.array([1, position], np.float32), of)


async def take(step: object, model: Model, writers: Writers, collection: Collection) -> None:
    """One step, in the model and through the writers; what they answer is compared."""
    match step:
        case dict():
            model.update(step)
            assert await writers.upsert(collection, [item(i, *of) for i, of in step.items()]) == len(step)
        case set():
            existed = step & model.keys()
            for item_id in existed:
                del model[item_id]
            assert await writers.delete(collection, sorted(step)) == len(existed)
        case list():
            missing = [update.id for update in step if update.id not in model]
            for update in step:
                if update.id in model:
                    position, old = model[update.id]
                    kept = {} if update.replace else {k: v for k, v in old.items() if k not in update.remove}
                    model[update.id] = position, {**kept, **update.set}
            assert await writers.update_metadata(collection, step) == (len(step) - len(missing), missing)
        case _:
            node: Node = step  # type: ignore[assignment]
            found = [item_id for item_id, (_, of) in model.items() if true_for(node, of)]
            for item_id in found:
                del model[item_id]
            assert await writers.delete_matching(collection, node) == len(found)


@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(script=st.lists(steps, min_size=1, max_size=8), mirrored=st.booleans())
def test_any_order_of_writes_leaves_in_chroma_and_in_the_mirror_what_it_says(
    connected: Connected, script: list[object], mirrored: bool
) -> None:
    async def run() -> None:
        name = f"writes-{next(numbers)}"
        stored = await connected.store.create(name, Metric.L2, {"owner": "test"})
        assert stored is not None
        collection = Collection(name, stored.key, Fingerprint("m", DIGEST, 2), Metric.L2, datetime.now(UTC))
        mirror, model = DictMirror(), Model()
        writers = Writers(connected.store, 3, 1024, Surroundings(lambda _: mirror if mirrored else None))
        for step in script:
            await take(step, model, writers, collection)
        await writers.drain()
        records = await connected.store.read(collection, IDS)
        kept = {record.id: (record.vector[1], typed(record.metadata)) for record in records}
        wanted = {item_id: (position, typed(of)) for item_id, (position, of) in model.items()}
        assert kept == wanted
        if mirrored:
            assert {i: (vector[1], typed(of)) for i, (vector, of) in mirror.items.items()} == wanted
            assert mirror.watermark >= max((record.stamp for record in records), default=0)

    connected.loop.run(run())


numbers = iter(range(1_000_000))


def typed(of: object) -> dict[str, tuple[type, Plain]]:
    assert isinstance(of, dict)
    return {key: (type(value), value) for key, value in of.items()}


@pytest.mark.parametrize("seed", range(2))
async def test_killing_chroma_loses_nothing_acknowledged_and_the_mirror_follows_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store, mirror = ChromaStore({}, 60), DictMirror()
    process, url = start_chroma(tmp_path / "data")
    try:
        await store.connect(url)
        stored = await store.create("killed", Metric.COSINE, {"owner": "test"})
        assert stored is not None
        collection = Collection("killed", stored.key, Fingerprint("m", DIGEST, 64), Metric.COSINE, datetime.now(UTC))
        writers = Writers(store, 64, 4096, Surroundings(lambda _: mirror, settle_s=0))
        vectors = np.random.default_rng(seed).normal(size=(2000, 64)).astype(np.float32)
        acknowledged: set[str] = set()
        refusals: set[int] = set()
        enough = asyncio.Event()

        async def upsert(first: int) -> None:
            items = [Item(f"i{n}", vectors[n], {"n": n}) for n in range(first, first + 20)]
            try:
                await writers.upsert(collection, items)
            except LikenessError as error:
                refusals.add(error.reason)
                return
            acknowledged.update(each.id for each in items)
            if len(acknowledged) >= before:
                enough.set()

        before = rng.randrange(100, 1000)
        calls = [asyncio.create_task(upsert(first)) for first in range(0, 2000, 20)]
        await enough.wait()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        await asyncio.gather(*calls)
        assert before <= len(acknowledged) < 2000
        assert refusals == {error_pb2.REASON_STORE_UNAVAILABLE}
        store.disconnect()

        process, url = start_chroma(tmp_path / "data")
        await store.connect(url)
        await writers.upsert(collection, [Item("last", vectors[0], {})])
        records = await store.read(collection, await store.ids(collection))
        assert acknowledged | {"last"} <= {record.id for record in records}
        assert {record.id: record.metadata for record in records} == {i: of for i, (_, of) in mirror.items.items()}
        await writers.drain()
    finally:
        process.kill()
        process.wait(10)
