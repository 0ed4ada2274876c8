"""The right pictures are found: category retrieval at the quality that the documentation states."""

from benchmarks.retrieval import through_the_gateway
from deploy.local import Services
from likeness_client import Client
from tests.pictures import shared


def test_categories_are_found_by_picture_and_by_text(services: Services) -> None:
    data = shared("aio60")

    with Client(services.addresses["gateway"]) as client:
        by_picture, by_text = through_the_gateway(client, "categories", data)
        counts = {found.name: found.count for found in client.status().collections}

    assert counts["categories"] == 595
    assert by_picture.queries == by_text.queries == 60
    assert min(by_picture.precision, by_picture.top_1) >= 0.95
    assert by_text.precision >= 0.95
