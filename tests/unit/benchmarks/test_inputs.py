"""The embedder's benchmark never sends the same input twice, and its pictures stay pictures."""

import io
import itertools
from pathlib import Path

import pytest
from likeness.embedder.v1 import embedder_pb2
from PIL import Image

from benchmarks.embedder import inputs, served
from tests.pictures import noise


@pytest.mark.parametrize("words", [3, 10, 70])
def test_texts_differ_and_have_their_length(words: int) -> None:
    texts = [inputs.text(words, number) for number in range(20_000)]
    assert len(set(texts)) == len(texts)
    assert {len(text.split()) for text in texts} == {words}


def test_a_comment_changes_the_bytes_and_not_the_picture() -> None:
    plain = noise(1)
    commented = [inputs.with_comment(plain, number) for number in range(3)]
    assert len({plain, *commented}) == 4
    pixels = {Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes() for jpeg in (plain, *commented)}
    assert len(pixels) == 1


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in inputs.PICTURES:
        folder = tmp_path / "inputs" / kind
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.jpg").write_bytes(noise(number))
    monkeypatch.setattr(inputs, "WORK", tmp_path)


@pytest.mark.parametrize("kind", [*inputs.KINDS, inputs.MIXED])
def test_prepared_requests_are_requests_and_all_different(kind: str, prepared: None) -> None:
    requests = list(itertools.islice(served.Requests(7).of(kind), 130))
    assert len(set(requests)) == len(requests)
    for raw in requests:
        request = embedder_pb2.EmbedRequest.FromString(raw + served.PRIORITY["bulk"])
        assert request.priority == embedder_pb2.PRIORITY_BULK
        assert len(request.inputs) == 1
        source = request.inputs[0].WhichOneof("input")
        assert source == "text" if kind in inputs.TEXTS else source in ("image", "text")
        if request.inputs[0].image.encoded:
            Image.open(io.BytesIO(request.inputs[0].image.encoded)).load()


def test_a_stream_s_request_is_a_number_before_the_same_bytes(prepared: None) -> None:
    request = next(served.Requests(0).of("500x334"))
    message = embedder_pb2.EmbedStreamRequest.FromString(served.correlated(300, request))
    assert message.correlation_id == 300
    assert message.input == embedder_pb2.EmbedRequest.FromString(request).inputs[0]
