"""The release: said in one place."""

from pathlib import Path

from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import chassis

ROOT = Path(__file__).resolve().parents[3]


def test_the_wheel_is_of_the_release_that_the_services_tell() -> None:
    assert ProjectMetadata(str(ROOT), PluginManager()).version == chassis.__version__
