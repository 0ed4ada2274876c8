"""``make demo``: the main job on real pictures, from indexing to three kinds of search, ending with results on screen.

By default the pictures are photographs that ship inside the scikit-image package. ``IMAGES=dir`` takes your own,
``QUERY=file`` and ``TEXT="…"`` your own query.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

from deploy.local import StartError, running

LIKENESS = Path(sys.executable).with_name("likeness")

# Photographs and scenes in scikit-image that their notes put in the public domain, under CC0 or free of known
# copyright restrictions; the file's name there → the name shown here.
SAMPLES = {
    "astronaut.png": "astronaut.png",  # NASA, public domain
    "brick.png": "brick-wall.png",  # CC0
    "camera.png": "photographer.png",  # CC0, Lav Varshney
    "chelsea.png": "cat.png",  # CC0, Stefan van der Walt
    "clock_motion.png": "wall-clock.png",  # public domain, Stefan van der Walt
    "coffee.png": "coffee-cup.png",  # CC0, Rachel Michetti
    "coins.png": "greek-coins.png",  # Brooklyn Museum, no known copyright restrictions
    "grass.png": "grass.png",  # CC0
    "gravel.png": "gravel.png",  # CC0
    "hubble_deep_field.jpg": "galaxies.jpg",  # NASA, public domain
    "retina.jpg": "retina.jpg",  # CC0, Mikael Häggström
    "rocket.jpg": "rocket-launch.jpg",  # SpaceX, public domain
}


def sample_pictures(directory: Path) -> None:
    """Puts the sample photographs into ``directory``, from where scikit-image is installed."""
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("scikit-image is not installed; run `make setup`")
    source = Path(package.submodule_search_locations[0]) / "data"
    for name, shown in SAMPLES.items():
        shutil.copyfile(source / name, directory / shown)


def mirrored_crop(picture: Path, target: Path) -> None:
    """A query that is not in the collection: the middle of a picture, mirrored and compressed anew."""
    with Image.open(picture) as opened:
        width, height = opened.size
        middle = opened.convert("RGB").crop((width // 8, height // 8, width * 7 // 8, height * 7 // 8))
        ImageOps.mirror(middle).save(target, quality=80)


def main() -> int:
    """Runs the demo; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="likeness-demo-") as scratch:
        directory = Path(scratch)
        if "IMAGES" in os.environ:
            images = Path(os.environ["IMAGES"])
            text = os.environ.get("TEXT", "a photo of a person")
            default_query = next(
                (p for p in sorted(images.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png")), None
            )
        else:
            images = directory / "pictures"
            images.mkdir()
            sample_pictures(images)
            text = os.environ.get("TEXT", "a rocket launch")
            default_query = directory / "mirrored-crop-of-the-cat.jpg"
            mirrored_crop(images / "cat.png", default_query)
        query = Path(os.environ["QUERY"]) if "QUERY" in os.environ else default_query
        searches = [("By text", ["--text", text])]
        if query is not None:
            searches.insert(0, ("By picture", ["--image", str(query)]))
            searches.append(("By both", ["--image", str(query), "--text", text]))
        print("Starting the three services …", flush=True)
        try:
            with running(directory) as services:
                server = ["--server", services.addresses["gateway"]]
                codes = [_show("Indexing", ["index", str(images)], server)]
                codes += [
                    _show(title, ["search", *query_arguments, "--top-k", "3"], server)
                    for title, query_arguments in searches
                ]
                if "IMAGES" not in os.environ and "TEXT" not in os.environ:
                    codes.append(_show("By text", ["search", "--text", "a cat", "--top-k", "3"], server))
        except StartError as error:
            print(error, file=sys.stderr)
            return 1
    print(
        "\nThe services are stopped and the demo's collection is gone. Next:\n"
        "  make up                                          start the services and leave them running\n"
        "  .venv/bin/likeness index DIR --label-from-parent  take your own pictures in\n"
        "  .venv/bin/likeness search --text 'a red car'      and find them\n"
        "  make down                                        stop the services\n"
        "CLIP instead of the starter model: see docs/starter-model.md."
    )
    return int(any(codes))


def _show(title: str, arguments: list[str], server: list[str]) -> int:
    """Runs one ``likeness`` command with its output on the screen; returns its exit code."""
    shown = " ".join(f'"{a}"' if " " in a else Path(a).name if "/" in a else a for a in arguments)
    print(f"\n── {title}: likeness {shown}", flush=True)
    return subprocess.run([LIKENESS, arguments[0], *server, *arguments[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
