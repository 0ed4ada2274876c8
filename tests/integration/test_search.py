"""Search through the gateway: by picture, text, stored item, vector and mixes of them, filtered, refused."""

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from likeness.common.v1 import types_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_CONTAINS, OPERATOR_GE, Comparison, Filter, FilterList, Value
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc
from PIL import Image, ImageOps

from chassis.errors import LikenessError
from deploy.local import Services
from tests.integration.conftest import Stub, index, item, read
from tests.pictures import noise

Term = gateway_pb2.Term


def search(stub: Stub, *terms: Term, **more: object) -> gateway_pb2.SearchResponse:
    request = gateway_pb2.SearchRequest(collection="photographs", terms=terms, **more)  # type: ignore[arg-type]
    return stub.Search(request, timeout=30)


def refused(stub: Stub, *terms: Term, **more: object) -> LikenessError:
    with pytest.raises(grpc.RpcError) as caught:
        search(stub, *terms, **more)
    return read(caught.value)


def picture(path: Path, weight: float | None = None) -> Term:
    return Term(image=types_pb2.Image(encoded=path.read_bytes()), weight=weight)


def ids(response: gateway_pb2.SearchResponse) -> list[str]:
    return [hit.item.id for hit in response.hits]


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a cat", "cat"),
        ("a rocket launch", "rocket-launch"),
    ],
)
def test_a_text_finds_the_picture_it_describes(stub: Stub, text: str, first: str) -> None:
    assert ids(search(stub, Term(text=text)))[0] == first


def test_a_picture_finds_itself_with_score_one(stub: Stub, photographs: dict[str, Path]) -> None:
    response = search(stub, picture(photographs["cat"]), top_k=3)

    assert ids(response)[0] == "cat"
    assert response.hits[0].score == pytest.approx(1.0, abs=1e-4)
    assert [hit.score for hit in response.hits] == sorted((hit.score for hit in response.hits), reverse=True)


def test_a_mirrored_recompressed_crop_finds_the_whole_picture(stub: Stub, photographs: dict[str, Path]) -> None:
    out = io.BytesIO()
    with Image.open(photographs["coffee-cup"]) as whole:
        ImageOps.mirror(whole.crop((60, 40, 540, 360))).save(out, "JPEG", quality=60)

    assert ids(search(stub, Term(image=types_pb2.Image(encoded=out.getvalue()))))[0] == "coffee-cup"


def test_a_decoded_picture_finds_the_same_as_its_file(stub: Stub, photographs: dict[str, Path]) -> None:
    with Image.open(photographs["cat"]) as opened:
        pixels = opened.convert("RGB")
    rgb = types_pb2.RgbImage(width=pixels.width, height=pixels.height, pixels=pixels.tobytes())

    response = search(stub, Term(image=types_pb2.Image(rgb=rgb)))

    assert ids(response)[0] == "cat"
    assert response.hits[0].score == pytest.approx(1.0, abs=1e-4)


@pytest.mark.usefixtures("photographs")
def test_more_like_a_stored_item_leaves_that_item_out(stub: Stub) -> None:
    found = ids(search(stub, Term(id="grass"), top_k=11))

    assert len(found) == 11
    assert "grass" not in found


def test_a_mix_of_picture_and_text_finds_both_subjects(stub: Stub, photographs: dict[str, Path]) -> None:
    assert set(ids(search(stub, picture(photographs["cat"]), Term(text="a rocket launch"), top_k=2))) == {
        "cat",
        "rocket-launch",
    }


@pytest.mark.usefixtures("photographs")
def test_a_negative_term_pushes_its_subject_down(stub: Stub) -> None:
    both = ids(search(stub, Term(text="a rocket launch"), Term(text="a cat"), top_k=12))
    without = ids(search(stub, Term(text="a rocket launch"), Term(text="a cat", weight=-1.0), top_k=12))

    assert set(both[:2]) == {"rocket-launch", "cat"}
    assert without[0] == "rocket-launch"
    assert without.index("cat") > both.index("cat")


@pytest.mark.usefixtures("photographs")
def test_a_stored_vector_searched_with_finds_its_item(stub: Stub) -> None:
    wanted = types_pb2.ItemFields(vector=True)
    stored = stub.GetItems(gateway_pb2.GetItemsRequest(collection="photographs", ids=["cat"], fields=wanted))
    vector = stored.items[0].vector

    assert np.linalg.norm(np.frombuffer(vector.f32, "<f4")) == pytest.approx(1, abs=1e-4)
    assert ids(search(stub, Term(vector=vector)))[0] == "cat"


@pytest.mark.usefixtures("photographs")
def test_a_filter_and_a_threshold_leave_out_what_does_not_pass(stub: Stub) -> None:
    wide = Filter(comparison=Comparison(key="width", op=OPERATOR_GE, values=[Value(int_value=600)]))
    cat = Filter(comparison=Comparison(key="labels", op=OPERATOR_CONTAINS, values=[Value(string_value="cat")]))

    found = search(stub, Term(text="a picture"), filter=wide, top_k=12)
    neither = search(stub, Term(text="a picture"), filter=Filter(all_of=FilterList(filters=[wide, cat])))
    alike = search(stub, Term(text="a cat"), min_score=search(stub, Term(text="a cat")).hits[0].score - 1e-4)

    assert set(ids(found)) == {"coffee-cup", "rocket-launch", "galaxies", "retina"}
    assert all(hit.item.metadata.fields["width"].int_value >= 600 for hit in found.hits)
    assert ids(neither) == []
    assert ids(alike) == ["cat"]


@pytest.mark.usefixtures("photographs")
def test_hits_carry_what_was_asked_for(stub: Stub) -> None:
    by_default = search(stub, Term(text="a cat"), top_k=1).hits[0].item
    bare = search(stub, Term(text="a cat"), top_k=1, fields=types_pb2.ItemFields()).hits[0].item
    everything = (
        search(stub, Term(text="a cat"), top_k=1, fields=types_pb2.ItemFields(metadata=True, vector=True)).hits[0].item
    )

    assert list(by_default.labels) == ["cat"]
    assert set(by_default.metadata.fields) == {"format", "width", "height", "bytes", "sha256"}
    assert not by_default.HasField("vector")
    assert list(bare.labels) == ["cat"]
    assert not bare.metadata.fields
    assert not bare.HasField("vector")
    assert len(everything.vector.f32) == 4 * 512


@pytest.mark.usefixtures("photographs")
def test_a_search_says_where_its_time_went_and_whose_vectors_it_searched(stub: Stub) -> None:
    response = search(stub, Term(text="a cat"))
    timings = [d.ToNanoseconds() for d in (response.timings.embed, response.timings.query, response.timings.total)]

    assert min(timings) > 0
    assert timings[2] >= timings[0] + timings[1]
    assert response.fingerprint == stub.GetStatus(gateway_pb2.GetStatusRequest()).model.fingerprint


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize(
    ("terms", "more", "reason", "field"),
    [
        ([], {}, "FIELD_INVALID", "terms"),
        ([Term()], {}, "FIELD_INVALID", "terms[0]"),
        ([Term(text="a cat"), Term(text="")], {}, "FIELD_INVALID", "terms[1].text"),
        ([Term(text="x", weight=0.0)], {}, "FIELD_INVALID", "terms[0].weight"),
        ([Term(text="x", weight=float("nan"))], {}, "FIELD_INVALID", "terms[0].weight"),
        ([Term(text="x")] * 65, {}, "FIELD_INVALID", "terms"),
        ([Term(image=types_pb2.Image(encoded=b"x"))], {}, "IMAGE_FORMAT_UNSUPPORTED", "terms[0].image.encoded"),
        ([Term(vector=types_pb2.Vector(f32=b"abc"))], {}, "VECTOR_INVALID", "terms[0].vector"),
        ([Term(vector=types_pb2.Vector(f32=bytes(8)))], {}, "VECTOR_INVALID", "terms[0].vector"),
        ([Term(text="x")], {"top_k": 1001}, "FIELD_INVALID", "top_k"),
        ([Term(text="x")], {"filter": Filter()}, "FILTER_INVALID", "filter"),
    ],
)
def test_a_bad_search_is_refused_by_the_name_of_its_field(
    stub: Stub, terms: list[Term], more: dict[str, object], reason: str, field: str
) -> None:
    error = refused(stub, *terms, **more)

    assert error.reason_name == reason
    assert [violation.field for violation in error.violations] == [field]
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.usefixtures("photographs")
def test_an_unknown_stored_item_is_not_found_by_its_id(stub: Stub) -> None:
    error = refused(stub, Term(text="a cat"), Term(id="nobody"))

    assert (error.reason_name, error.code) == ("ITEM_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    assert "nobody" in error.message
    assert "examples" not in error.message


@pytest.mark.usefixtures("photographs")
def test_terms_that_cancel_out_are_refused(stub: Stub) -> None:
    error = refused(stub, Term(text="a cat"), Term(text="a cat", weight=-1.0))

    assert error.reason_name == "QUERY_CANCELS_OUT"
    assert [violation.field for violation in error.violations] == ["terms"]


def test_an_unknown_collection_is_not_found_by_its_name(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(gateway_pb2.SearchRequest(collection="nowhere", terms=[Term(text="a cat")]), timeout=30)

    error = read(caught.value)
    assert (error.reason_name, error.code) == ("COLLECTION_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    assert "nowhere" in error.message


def test_a_collection_of_another_model_is_neither_searched_nor_written(services: Services, stub: Stub) -> None:
    other = types_pb2.ModelFingerprint(model="another", digest="ab" * 32, dimension=512)
    with grpc.insecure_channel(services.addresses["indexer"]) as channel:
        indexer_pb2_grpc.IndexerServiceStub(channel).CreateCollection(
            indexer_pb2.CreateCollectionRequest(name="of-another-model", fingerprint=other), timeout=30
        )

    with pytest.raises(grpc.RpcError) as searching:
        stub.Search(gateway_pb2.SearchRequest(collection="of-another-model", terms=[Term(text="a cat")]), timeout=30)
    with pytest.raises(grpc.RpcError) as writing:
        index(stub, [item(0, noise(1), "x")], "of-another-model")

    for caught in (searching, writing):
        error = read(caught.value)
        assert (error.reason_name, error.code) == ("MODEL_MISMATCH", grpc.StatusCode.FAILED_PRECONDITION)
        assert "another" in error.message
        assert "starter" in error.message
    status = {c.name: c.searchable for c in stub.GetStatus(gateway_pb2.GetStatusRequest()).collections}
    assert status["of-another-model"] is False


@pytest.mark.usefixtures("photographs")
def test_a_caller_who_expects_another_model_is_refused(stub: Stub) -> None:
    other = types_pb2.ModelFingerprint(model="another", digest="cd" * 32, dimension=512)

    by_text = refused(stub, Term(text="a cat"), expected_fingerprint=other)
    by_id = refused(stub, Term(id="cat"), expected_fingerprint=other)

    assert (by_text.reason_name, by_id.reason_name) == ("MODEL_MISMATCH", "MODEL_MISMATCH")


@pytest.mark.usefixtures("photographs")
def test_a_fingerprint_without_a_digest_is_refused(stub: Stub) -> None:
    error = refused(stub, Term(id="cat"), expected_fingerprint=types_pb2.ModelFingerprint(model="x"))

    assert [violation.field for violation in error.violations] == ["expected_fingerprint.digest"]
