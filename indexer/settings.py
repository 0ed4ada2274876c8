"""What the indexer can be told."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from chassis.settings import ServiceSettings


class IndexerSettings(ServiceSettings):
    """Settings of the indexer, the owner of the collections and only client of Chroma."""

    port: int = Field(
        50052,
        ge=0,
        le=65535,
        validation_alias="LIKENESS_INDEXER_PORT",
        description="Port to listen on, 0 to 65535; 0: a free one, which the log names.",
    )
    data_dir: Path = Field(
        Path("data/indexer"),
        description="Directory of the lock and, without LIKENESS_CHROMA_URL, of everything stored. One indexer each.",
    )
    chroma_url: str = Field(
        "",
        description="Chroma server to use, such as http://chroma:8000. Empty: start one on loopback over the data "
        "directory and look after it. No other indexer may use the same server.",
    )
    chroma_token: SecretStr = Field(
        SecretStr(""), description="Sent to LIKENESS_CHROMA_URL as the header x-chroma-token. Empty: not sent."
    )
    chroma_start_s: float = Field(
        60, gt=0, le=3600, description="Longest wait for Chroma when starting, in seconds; then the indexer gives up."
    )
    store_timeout_s: float = Field(
        60, gt=0, le=3600, description="Longest wait for one answer of Chroma, in seconds; then it counts as away."
    )
    write_chunk: int = Field(
        64,
        ge=1,
        le=64,
        description="Most items written to Chroma at once, 1 to 64. A chunk holds up queries while it is written.",
    )
    write_queue: int = Field(
        4096,
        ge=1024,
        le=1_000_000,
        description="Most items of one collection waiting to be written, 1,024 to 1,000,000; beyond: OVERLOADED.",
    )
    searches: int = Field(4, ge=1, le=256, description="Most searches under way in Chroma at once, 1 to 256.")
    search_queue: int = Field(
        1024, ge=128, le=1_000_000, description="Most searches waiting for their turn, 128 to 1,000,000."
    )

    @property
    def chroma_headers(self) -> dict[str, str]:
        """What every request to Chroma carries."""
        token = self.chroma_token.get_secret_value()
        return {"x-chroma-token": token} if token else {}

    @field_validator("chroma_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if url:
            parts = urlsplit(url)
            if parts.username or parts.password:
                raise ValueError("expected no name and password in it; see LIKENESS_CHROMA_TOKEN")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
            _ = parts.port  # raises ValueError itself when out of range
        return url
