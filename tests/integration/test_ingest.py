"""IndexImages: every item answered once, bad ones alone refused, what is acknowledged found."""

import hashlib
import io
import os
import queue
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc
import pytest
from likeness.common.v1 import types_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_GE, Comparison, Filter, Metadata, Value
from likeness.gateway.v1 import gateway_pb2
from PIL import ExifTags, Image

from chassis.errors import from_status
from deploy.local import Services
from tests.integration.conftest import Item, Stub, count, index, item, messages, read
from tests.pictures import hostile, noise, shared
from tests.processes import forget_peak, peak_memory


def reason(result: gateway_pb2.IndexResult) -> str:
    """The reason an item was refused with; "" if it is stored."""
    return "" if result.WhichOneof("outcome") == "stored" else from_status(result.error.status).reason_name


def get(stub: Stub, collection: str, *ids: str) -> gateway_pb2.GetItemsResponse:
    return stub.GetItems(gateway_pb2.GetItemsRequest(collection=collection, ids=ids), timeout=30)


def test_hostile_pictures_in_a_stream_are_refused_alone_and_their_neighbours_stored(stub: Stub) -> None:
    bad = hostile()
    items: list[Item] = []
    for i, (content, _) in enumerate(bad.values()):
        items += [item(2 * i, content), item(2 * i + 1, noise(100 + i), f"good-{i}")]

    results = index(stub, items, "hostile")

    assert {name: reason(results[2 * i]) for i, name in enumerate(bad)} == {n: why for n, (_, why) in bad.items()}
    assert [reason(results[2 * i + 1]) for i in range(len(bad))] == [""] * len(bad)
    assert not get(stub, "hostile", *(f"good-{i}" for i in range(len(bad)))).missing_ids
    for result in results.values():
        if result.HasField("error"):
            assert "item.image" in result.error.status.message


def test_every_poisonous_file_is_treated_as_its_list_says_within_the_memory_bound(
    services: Services, stub: Stub
) -> None:
    folder = shared("poison")
    rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()[1:]]
    processes = [services.processes[name] for name in ("embedder", "gateway")]
    before = [forget_peak(process) for process in processes]
    items: list[Item] = []
    for i, row in enumerate(rows):
        items += [item(2 * i, folder / row[0], f"poison-{i}"), item(2 * i + 1, noise(200 + i), f"neighbour-{i}")]

    results = index(stub, items, "poison")

    wrong = {
        row[0]: reason(results[2 * i])
        for i, row in enumerate(rows)
        if (row[1] == "ok") != (results[2 * i].WhichOneof("outcome") == "stored")
    }
    assert wrong == {}
    reasons = {row[0]: reason(results[2 * i]) for i, row in enumerate(rows) if row[1] == "reject"}
    assert reasons == {name: expected_reason(name) for name in reasons}
    assert [reason(results[2 * i + 1]) for i in range(len(rows))] == [""] * len(rows)
    after = [peak_memory(process) for process in processes]
    assert all(peak - start < 2**30 for peak, start in zip(after, before, strict=True)), (before, after)


def expected_reason(name: str) -> str:
    """Why a file of the poison folder must be refused, by its name."""
    too_large = ("bad_bomb_12000", "bad_bomb_16000", "bad_bomb_50000", "bad_bomb_65535")
    broken = ("bad_crc_ihdr", "bad_gif_0", "bad_header", "bad_idat", "bad_no_idat", "bad_truncated")
    damaged = ("bad_bomb_i", "bad_bomb_z", *broken)
    if name.startswith(too_large):
        return "IMAGE_TOO_MANY_PIXELS"
    return "IMAGE_DAMAGED" if name.startswith(damaged) else "IMAGE_FORMAT_UNSUPPORTED"


def test_an_id_defaults_to_the_content_hash_so_that_sending_twice_is_harmless(stub: Stub) -> None:
    pictures = [noise(300), noise(301), noise(300)]

    first = index(stub, (item(i, picture) for i, picture in enumerate(pictures)), "twice")
    second = index(stub, (item(i, picture) for i, picture in enumerate(pictures)), "twice")

    assert [first[i].id for i in range(3)] == [hashlib.sha256(picture).hexdigest() for picture in pictures]
    assert {reason(result) for result in (*first.values(), *second.values())} == {""}
    assert count(stub, "twice") == 2


def test_items_of_one_id_take_effect_in_the_order_sent(stub: Stub) -> None:
    items = [item(i, noise(400 + i), "same", label=f"label-{i}") for i in range(12)]

    results = index(stub, items, "order")

    assert len(results) == 12
    stored = get(stub, "order", "same").items[0]
    assert list(stored.labels) == ["label-11"]
    assert stored.metadata.fields["sha256"].string_value == hashlib.sha256(noise(411)).hexdigest()


def test_an_item_replaces_its_predecessor_labels_and_metadata_included(stub: Stub) -> None:
    old = item(0, noise(500), "x", label="old")
    old.metadata.fields["project"].string_value = "apollo"
    old.uri = "file:///old.jpg"
    index(stub, [old], "replace")

    index(stub, [item(0, noise(501), "x", label="new")], "replace")

    stored = get(stub, "replace", "x").items[0]
    assert (list(stored.labels), stored.uri) == (["new"], "")
    assert "project" not in stored.metadata.fields


def test_what_the_caller_says_and_what_the_bytes_say_both_come_back(stub: Stub) -> None:
    sent = item(0, noise(600, (80, 40)), "x", label="l")
    sent.labels.append("l")
    sent.labels.append("m")
    sent.uri = "s3://bucket/key ü.jpg"
    sent.metadata.MergeFrom(Metadata(fields={"price": Value(double_value=2.0), "sold": Value(bool_value=False)}))
    index(stub, [sent], "facts")

    stored = get(stub, "facts", "x").items[0]

    assert (list(stored.labels), stored.uri) == (["l", "m"], "s3://bucket/key ü.jpg")
    fields = stored.metadata.fields
    assert (fields["width"].int_value, fields["height"].int_value) == (80, 40)
    assert (fields["format"].string_value, fields["bytes"].int_value) == ("JPEG", len(sent.image.encoded))
    assert (fields["price"].WhichOneof("kind"), fields["price"].double_value) == ("double_value", 2.0)
    assert (fields["sold"].WhichOneof("kind"), fields["sold"].bool_value) == ("bool_value", False)


def test_date_camera_and_place_of_a_jpeg_come_back_with_the_item_and_can_be_searched_by(stub: Stub) -> None:
    exif, out = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "ACME", "ACME One"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2019:07:04 15:30:00"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.OffsetTimeOriginal] = "+02:00"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "S", (33.0, 51.0, 30.0)
    gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (151.0, 12.0, 36.0)
    Image.effect_noise((64, 48), 50).convert("RGB").save(out, "JPEG", exif=exif)
    index(stub, [item(0, out.getvalue(), "snap"), item(1, noise(610), "plain")], "exif")
    taken_at = int(datetime(2019, 7, 4, 13, 30, tzinfo=UTC).timestamp())

    since = Comparison(key="taken_at", op=OPERATOR_GE, values=[Value(int_value=taken_at)])
    request = gateway_pb2.SearchRequest(
        collection="exif",
        terms=[gateway_pb2.Term(text="noise")],
        filter=Filter(comparison=since),
        fields=types_pb2.ItemFields(metadata=True),
    )
    (hit,) = stub.Search(request, timeout=30).hits

    for found in (get(stub, "exif", "snap").items[0], hit.item):
        fields = found.metadata.fields
        assert (found.id, fields["taken_at"].int_value, fields["camera"].string_value) == ("snap", taken_at, "ACME One")
        place = (fields["latitude"].double_value, fields["longitude"].double_value)
        assert place == pytest.approx((-33.858333, 151.21), abs=1e-5)
    assert not {"taken_at", "camera", "latitude", "longitude"} & set(
        get(stub, "exif", "plain").items[0].metadata.fields
    )


@pytest.mark.parametrize(
    ("change", "why", "field"),
    [
        ({"id": "a\nb"}, "FIELD_INVALID", "item.id"),
        ({"uri": "x" * 5000}, "FIELD_INVALID", "item.uri"),
        ({"labels": [""]}, "FIELD_INVALID", "item.labels[0]"),
        ({"labels": ["x"] * 257}, "FIELD_INVALID", "item.labels"),
        ({"metadata": Metadata(fields={"width": Value(int_value=1)})}, "METADATA_INVALID", "item.metadata.fields"),
        ({"metadata": Metadata(fields={"9": Value(int_value=1)})}, "METADATA_INVALID", "item.metadata.fields"),
        (
            {"metadata": Metadata(fields={f"k{i}": Value(int_value=i) for i in range(62)})},
            "METADATA_INVALID",
            "item.metadata",
        ),
        ({"image": types_pb2.Image()}, "FIELD_INVALID", "item.image"),
        (
            {"image": types_pb2.Image(rgb=types_pb2.RgbImage(width=5, height=5, pixels=b"x"))},
            "FIELD_INVALID",
            "item.image.rgb.pixels",
        ),
    ],
)
def test_a_bad_item_is_refused_by_the_name_of_its_field(
    stub: Stub, change: dict[str, object], why: str, field: str
) -> None:
    bad = item(7, noise(700))
    for name in change:
        bad.ClearField(name)  # type: ignore[arg-type]
    bad.MergeFrom(Item(**change))  # type: ignore[arg-type]

    results = index(stub, [bad, item(8, noise(701), "good")], "bad-items")

    error = from_status(results[7].error.status)
    assert (error.reason_name, [v.field for v in error.violations]) == (why, [field])
    assert reason(results[8]) == ""


def test_a_stream_that_does_not_begin_with_start_is_refused(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.IndexImages(iter([gateway_pb2.IndexImagesRequest(item=item(0, noise(1)))]), timeout=30))

    assert read(caught.value).violations[0].field == "start"


def test_a_second_start_ends_the_stream_after_everything_before_it_was_answered(stub: Stub) -> None:
    sent = [*messages([item(i, noise(800 + i)) for i in range(5)], "second-start")]
    answers = stub.IndexImages(iter([*sent, sent[0]]), timeout=60)
    stored = 0
    with pytest.raises(grpc.RpcError) as caught:
        for answer in answers:
            stored += answer.WhichOneof("message") == "result"

    assert read(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
    assert stored == count(stub, "second-start") == 5


def test_an_unknown_collection_is_not_made_unless_asked(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.IndexImages(messages([item(0, noise(1))], "never-made", create=False), timeout=30))

    assert read(caught.value).reason_name == "COLLECTION_NOT_FOUND"
    assert count(stub, "never-made") == 0


def test_a_result_comes_while_the_stream_is_still_open(stub: Stub) -> None:
    outbox: queue.Queue[gateway_pb2.IndexImagesRequest | None] = queue.Queue()
    sent = messages([item(0, noise(900), "first"), item(1, noise(901), "second")], "open")

    def requests() -> Iterator[gateway_pb2.IndexImagesRequest]:
        while (message := outbox.get()) is not None:
            yield message

    answers = stub.IndexImages(requests(), timeout=60)
    results = (answer.result for answer in answers if answer.HasField("result"))
    outbox.put(next(sent))
    assert next(answers).started.created
    outbox.put(next(sent))
    assert next(results).id == "first"
    assert not get(stub, "open", "first").missing_ids
    outbox.put(next(sent))
    assert next(results).id == "second"
    outbox.put(None)
    assert list(results) == []


def test_deleted_items_are_gone_and_unknown_ones_are_no_error(stub: Stub) -> None:
    index(stub, [item(i, noise(1000 + i), f"d{i}") for i in range(3)], "delete")

    request = gateway_pb2.DeleteItemsRequest(collection="delete", ids=["d0", "d2", "never"])
    first, second = stub.DeleteItems(request), stub.DeleteItems(request)

    assert (first.deleted, second.deleted) == (2, 0)
    left = get(stub, "delete", "d0", "d1", "d2")
    assert ([found.id for found in left.items], list(left.missing_ids)) == (["d1"], ["d0", "d2"])


def test_memory_stays_flat_however_many_pictures_a_stream_brings(services: Services, stub: Stub) -> None:
    gateway = services.processes["gateway"]
    big = os.urandom(2**20)  # a megabyte that Pillow has no need to look at
    forget_peak(gateway)
    index(stub, (item(i, noise(2000 + i) + big) for i in range(100)), "flat")
    short = peak_memory(gateway)
    forget_peak(gateway)

    index(stub, (item(i, noise(2100 + i) + big) for i in range(400)), "flat")

    assert peak_memory(gateway) - short < 150 * 2**20  # 300 more of a megabyte each; the rest is the allocator's
    assert count(stub, "flat") == 500
