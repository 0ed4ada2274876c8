"""The converted form of the model that the settings name, had by a process of its own.

Finding a model's converted form takes its fingerprint, and so torch, open_clip and all the weights; serving it takes
none of them. They end with that process. Starter, resident memory of the model process after a few batches of 8 and 16:
1,268 MB where it had loaded torch itself, 487 MB this way.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from google.rpc import status_pb2

from chassis import logs
from chassis.errors import LikenessError, from_status, invalid, to_status
from chassis.tether import die_with
from embedder.settings import EmbedderSettings


class LeftOutError(Exception):
    """The model has no converted form and can have none here.

    Attributes:
        field: the setting that is to blame.
        cause: what happened.
    """

    def __init__(self, field: str, cause: str) -> None:
        super().__init__(f"{field}: {cause}")
        self.field, self.cause = field, cause


@dataclass(frozen=True)
class Prepared:
    """A model's converted form.

    Attributes:
        folder: where it is.
        name: of the model, for people, by these settings. What the folder says is its name by those it was converted
            with: the same weights may since have come from another path.
    """

    folder: Path
    name: str


def cache_folder(settings: EmbedderSettings) -> Path:
    """Where converted models are kept, a folder each.

    Raises:
        LeftOutError: no place is known.
    """
    try:
        if settings.cache_dir:
            return Path(settings.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "likeness"
    except RuntimeError as error:  # a user without a home
        what = settings.cache_dir or "is not set, and there is no other place"
        raise LeftOutError("LIKENESS_CACHE_DIR", f"{what}: {error}") from error


def prepare(settings: EmbedderSettings) -> Prepared:
    """Loads the model, and converts it unless an earlier start did. Imports torch.

    Returns:
        Its converted form. The SHA-256 of what an earlier start wrote is yet to be checked.

    Raises:
        LikenessError: there is no such model.
        LeftOutError: it cannot be converted, or the result not be kept.
    """
    from embedder.backends.convert import ConversionError, cached, converted  # noqa: PLC0415 (torch)
    from embedder.backends.identify import identify  # noqa: PLC0415
    from embedder.backends.towers import build_towers  # noqa: PLC0415
    from embedder.models import load  # noqa: PLC0415

    loaded = load(settings.model, settings.pretrained, settings.preprocess_like)
    spec, probes = identify(loaded)
    cache = cache_folder(settings)
    try:
        folder = cached(cache, spec.digest)
        if folder is None:
            towers = build_towers(loaded, probes.tokens, spec.tokenizer.pad_id)
            spec = replace(spec, backend="openvino", dimension=towers.dimension, texts_cut=towers.texts_cut)
            folder = converted(cache, towers, spec, probes, settings.model_thread_count)
        return Prepared(folder, spec.name)
    except ConversionError as error:
        raise LeftOutError("LIKENESS_BACKEND", str(error)) from error
    except OSError as error:
        raise LeftOutError("LIKENESS_CACHE_DIR", f"the converted model cannot be kept: {error}") from error


def prepare_elsewhere(settings: EmbedderSettings) -> Prepared:
    """``prepare`` in a process that ends with it, and that ends when this one does.

    Raises:
        LikenessError: there is no such model, or that process was killed.
        LeftOutError: it cannot be converted, or the result not be kept.
    """
    run = subprocess.run(
        [sys.executable, "-m", "embedder.backends.preparation"],
        input=settings.model_dump_json().encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    if run.returncode:
        raise invalid(
            "LIKENESS_MODEL",
            f"the process that loads {settings.model} ended with code {run.returncode}; its last lines are in the log. "
            "If it was killed (-9), it may have wanted more memory than there is",
        )
    answer = json.loads(run.stdout)
    if "refused" in answer:
        raise from_status(status_pb2.Status.FromString(bytes.fromhex(answer["refused"])))
    if "left_out" in answer:
        raise LeftOutError(*answer["left_out"])
    return Prepared(Path(answer["folder"]), answer["name"])


def main() -> None:
    """Reads the settings from standard input and writes what came of them to standard output, both as JSON."""
    die_with(os.getppid())
    answer_to = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    settings = EmbedderSettings.model_validate_json(sys.stdin.buffer.read())
    logs.configure(settings.log_level, settings.log_style, "EmbedderPreparation")
    try:
        prepared = prepare(settings)
        answer: dict[str, object] = {"folder": str(prepared.folder), "name": prepared.name}
    except LikenessError as error:
        answer = {"refused": to_status(error).SerializeToString().hex()}
    except LeftOutError as error:
        answer = {"left_out": [error.field, error.cause]}
    with os.fdopen(answer_to, "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
