"""What a manifest says, and how it shows that it was altered."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.archive.manifest import Manifest, Part, decoded
from indexer.collections import Collection, Fingerprint, Hnsw, Metric

COLLECTION = Collection(
    "photos", "key", Fingerprint("modèle", "a1" * 32, 512), Metric.L2, datetime.now(UTC), hnsw=Hnsw(8, 16, 32),
    uid="uid", description="Ferien 2026",
)  # fmt: skip
MANIFEST = Manifest(
    COLLECTION,
    datetime(2026, 11, 22, 10, 15, 0, 123000, UTC),
    12,
    [Part("part-00000.parquet", 10, 1000, "b2" * 32), Part("part-00001.parquet", 2, 300, "c3" * 32)],
    {"likeness": "0.1.0"},
)
WRITTEN = MANIFEST.encoded()


def refused(written: bytes) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        decoded(written, "photos/20261122T101500.123Z")
    assert "photos/20261122T101500.123Z" in caught.value.message
    return caught.value


def signed(**changes: Any) -> bytes:
    """Another manifest, whose digest is right."""
    manifest = {key: value for key, value in json.loads(WRITTEN).items() if key != "sha256_of_the_rest"} | changes
    plain = json.dumps(manifest, indent=1, sort_keys=True).encode()
    manifest["sha256_of_the_rest"] = hashlib.sha256(plain).hexdigest()
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def test_what_is_written_is_read() -> None:
    read = decoded(WRITTEN, "")
    assert read == replace(MANIFEST, collection=replace(COLLECTION, key=""))
    assert read.size == 1300
    assert signed() == WRITTEN


@settings(deadline=None)
@given(place=st.integers(0, len(WRITTEN) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(place: int, bit: int) -> None:
    altered = WRITTEN[:place] + bytes([WRITTEN[place] ^ (1 << bit)]) + WRITTEN[place + 1 :]
    # In the format's own number a changed bit makes a newer format.
    assert refused(altered).reason in (error_pb2.REASON_SNAPSHOT_DAMAGED, error_pb2.REASON_SCHEMA_UNSUPPORTED)


@settings(deadline=None)
@given(st.integers(0, len(WRITTEN) - 1))
def test_none_can_be_cut(length: int) -> None:
    assert refused(WRITTEN[:length]).reason == error_pb2.REASON_SNAPSHOT_DAMAGED


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 11},
        {"rows": None},
        {"files": [{"name": "../../etc/passwd", "rows": 12, "size": 1, "sha256": ""}]},
        {"files": [{"name": ".hidden", "rows": 12, "size": 1, "sha256": ""}]},
        {"files": [{"name": 7, "rows": 12, "size": 1, "sha256": ""}]},
        {"files": {}},
        {"collection": {}},
        {"collection": json.loads(WRITTEN)["collection"] | {"name": "../photos"}},
        {"collection": json.loads(WRITTEN)["collection"] | {"metric": "manhattan"}},
        {
            "collection": json.loads(WRITTEN)["collection"]
            | {"fingerprint": {"model": "m", "digest": "", "dimension": 0}}
        },
        {"created": "yesterday"},
        {"format": 0},
        {"format": "1"},
    ],
)
def test_one_that_says_nonsense_is_refused(changes: dict[str, Any]) -> None:
    assert refused(signed(**changes)).reason == error_pb2.REASON_SNAPSHOT_DAMAGED


@pytest.mark.parametrize("written", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": 1}'])
def test_what_is_none_is_refused(written: bytes) -> None:
    assert refused(written).reason == error_pb2.REASON_SNAPSHOT_DAMAGED


def test_a_newer_format_is_named() -> None:
    error = refused(signed(format=2, more="than this release knows"))
    assert error.reason == error_pb2.REASON_SCHEMA_UNSUPPORTED
    assert "format 2" in error.message
