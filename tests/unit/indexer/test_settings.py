"""What the indexer refuses to be told."""

import pytest
from pydantic import ValidationError

from indexer.settings import IndexerSettings


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "604801"])
def test_no_time_between_two_probes_of_recall_is_without_end(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_RECALL_PROBE_S", "604800")
    assert IndexerSettings().recall_probe_s == 604_800
    monkeypatch.setenv("LIKENESS_RECALL_PROBE_S", seconds)
    with pytest.raises(ValidationError, match="recall_probe_s"):
        IndexerSettings()
