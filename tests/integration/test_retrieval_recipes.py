"""The recipes of docs/retrieval.md, run as they stand there: the same kind, the same thing, the same picture."""

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from deploy.local import Services
from tests.integration import recipes
from tests.integration.conftest import Stub, connect, index, item
from tests.pictures import samples
from tests.processes import ROOT

DOCUMENT = ROOT / "docs" / "retrieval.md"
KINDS = {
    "animals": ("cat",),
    "places": ("grass", "rocket-launch"),
    "things": ("coffee-cup", "wall-clock", "retina"),
}


@pytest.fixture(scope="module")
def folder(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes run: ``photos/`` by kind, taken in, and pictures to look for."""
    whole = tmp_path_factory.mktemp("recipes")
    paths = samples(whole / "samples")
    for kind, names in KINDS.items():
        (whole / "photos" / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(paths[name], whole / "photos" / kind)
    shutil.copy(paths["cat"], whole / "cat.jpg")
    with Image.open(paths["coffee-cup"]) as opened:
        cup = opened.convert("RGB")
    width, height = cup.size
    ImageOps.mirror(cup.crop((width // 8, height // 8, width, height))).save(whole / "crop.jpg")
    cup.save(whole / "smaller.jpg", quality=70)
    recipes.run(recipes.blocks(DOCUMENT)["fill"], whole, gateway(services))
    with connect(services) as channel:  # equal bytes under two ids, which `likeness index` never makes
        index(Stub(channel), [item(0, whole / "cat.jpg", "the cat again", "animals")], "photos")
    return whole


def gateway(services: Services) -> dict[str, str]:
    return {"LIKENESS_GATEWAY": services.addresses["gateway"]}


def printed(services: Services, folder: Path, recipe: str) -> list[str]:
    """What each command of a recipe prints."""
    commands = recipes.blocks(DOCUMENT)[recipe].splitlines()
    return [recipes.run(command, folder, gateway(services)) for command in commands]


def first_row(table: str) -> str:
    """The first row of a printed table."""
    return next(line for line in table.splitlines() if line.split()[:1] == ["1"])


def test_the_recipe_for_pictures_of_the_same_kind_finds_them(services: Services, folder: Path) -> None:
    by_text, by_picture, filtered = printed(services, folder, "category")
    assert "cat" in first_row(by_text)
    assert "cat" in first_row(by_picture)
    assert "animals" in filtered
    assert "places" not in filtered


def test_the_recipe_for_the_same_thing_finds_it_in_a_mirrored_crop(services: Services, folder: Path) -> None:
    (found,) = printed(services, folder, "instance")
    assert "coffee-cup" in first_row(found)
    assert "grass" not in found


def test_the_recipe_for_the_same_picture_finds_copies_and_recompressed_ones(services: Services, folder: Path) -> None:
    exact, near, is_it_there = printed(services, folder, "duplicate")
    assert "the cat again" in exact
    assert "coffee-cup" not in exact
    assert "the cat again" in near
    assert "coffee-cup" in first_row(is_it_there)
