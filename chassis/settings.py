"""The settings that every service has, where they come from, and how ``--help`` shows them.

Settings come from the environment (``LIKENESS_*``) and are validated before anything starts. Every setting's
description says its unit and range.
"""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from chassis.misspelled import PREFIX, is_service_link, misspelled
from chassis.tls import ListenerTls

# Variables whose values are secrets, and what a message quotes, which may be a piece of one.
_SECRET = re.compile("TOKEN|KEY|PASSWORD")
_QUOTED = re.compile("[\"'].*[\"']", re.DOTALL)


class ServiceSettings(BaseSettings):
    """What all three services can be told. Subclasses add ``port`` and their own."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level to log.")
    log_style: Literal["auto", "json", "console"] = Field(
        "auto", description="Log lines as JSON or for people; auto: for people on a terminal, else JSON."
    )
    max_message_mb: int = Field(
        64,
        ge=1,
        le=1024,
        description="Largest gRPC message taken, in MiB, 1 to 1,024. Those sent have bounds of their own.",
    )
    default_deadline_s: float = Field(
        60, gt=0, le=3600, description="Deadline, in seconds, of a call that brings none. Streams have none."
    )
    max_deadline_s: float = Field(
        3600,
        gt=0,
        le=86400,
        description="Longest deadline, in seconds, of a call; a longer one is cut. Streams have none.",
    )
    max_concurrent_calls: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Most calls and streams under way at once, 1 to 1,000,000; more are refused with OVERLOADED.",
    )
    drain_s: float = Field(30, ge=0, le=3600, description="Longest wait for calls under way when stopping, in seconds.")
    stop_delay_s: float = Field(
        0,
        ge=0,
        le=3600,
        description="Time, in seconds, for which a service that is told to stop (SIGTERM) says NOT_SERVING and still "
        "takes calls: as long as those who send them may take to notice. A second signal ends it.",
    )
    max_connection_age_s: int = Field(
        300,
        ge=1,
        le=31_536_000,
        description="Age at which a connection is renewed so that new replicas get traffic, in seconds, 1 to "
        "31,536,000 (a year); above 2,147,483 (24 days), gRPC's longest, it is that.",
    )

    tls_cert: Path | None = Field(
        None,
        description="File (PEM) of the certificate, and those between it and the authority's, for TLS on every port. "
        "Empty: no TLS. Read at start.",
    )
    tls_key: Path | None = Field(None, description="File (PEM) of the key to LIKENESS_TLS_CERT, without a password.")
    tls_client_ca: Path | None = Field(
        None,
        description="File (PEM) of the authorities of which every client needs a certificate (mTLS); the service's own "
        "has to be from there too, for its health check. Empty: clients need none.",
    )

    @property
    def listen_host(self) -> str:
        """The address to listen on."""
        return self.host

    @property
    def address(self) -> str:
        """Where to listen: ``host:port``, an IPv6 host in brackets."""
        host = self.listen_host
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{host}:{self.port}"

    @property
    def tls(self) -> ListenerTls | None:
        """TLS of every port; None: without."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return ListenerTls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual ones; in the environment a setting has its own variable and no other.

        By its field's name it is given in code (``populate_by_name``); LIKENESS_PORT would be all three services' port.
        """
        if isinstance(env_settings, EnvSettingsSource):
            no_variables = {name.lower() for name in cls._by_field()}
            told = env_settings.env_vars
            env_settings.env_vars = {name: told[name] for name in told if name.lower() not in no_variables}
        return super().settings_customise_sources(
            settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
        )

    @model_validator(mode="before")
    @classmethod
    def _service_links_are_no_settings(cls, told: Any) -> Any:
        return {k: v for k, v in told.items() if not is_service_link(k, v)} if isinstance(told, dict) else told

    @model_validator(mode="after")
    def _tls_is_usable(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("LIKENESS_TLS_CERT and LIKENESS_TLS_KEY go together; one of them is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("LIKENESS_TLS_CLIENT_CA needs LIKENESS_TLS_CERT and LIKENESS_TLS_KEY")
        if self.tls is not None:
            self.tls.context()
        return self

    @classmethod
    def parse(cls, program: str, arguments: Sequence[str]) -> Self:
        """The settings from the environment.

        Prints all settings and exits with 0 for ``--help``; names every bad setting and exits with 2 otherwise. What
        may be a secret is not printed.

        Args:
            program: as the user starts it, such as ``python -m embedder``.
            arguments: the command line after the program's name.
        """
        if any(a in ("-h", "--help") for a in arguments):
            print(cls._help(program))
            raise SystemExit(0)
        if arguments:
            _refuse(f"{program}: unknown argument {arguments[0]!r}; settings come from the environment, see --help")
        try:
            return cls()
        except ValidationError as error:
            lines = [f"{program}: the settings are not usable:", *(f"  {cls._told(each)}" for each in error.errors())]
            _refuse("\n".join([*lines, f"See {program} --help."]))

    @classmethod
    def misspelled(cls) -> dict[str, str | None]:
        """Variables of the environment that are no setting of any program, and what each may have been meant for."""
        told, by_field = misspelled(os.environ, map(cls._variable, cls.model_fields)), cls._by_field()
        return {name: by_field.get(name, meant) for name, meant in told.items()}

    @classmethod
    def _told(cls, problem: ErrorDetails) -> str:
        """What is wrong with a setting, with its value unless that may be a secret."""
        if not problem["loc"]:
            return problem["msg"]
        name = cls._variable(str(problem["loc"][0]))
        # What stands before an @ is a URL's user and password.
        if _SECRET.search(name) or "@" in str(problem["input"]):
            return f"{name}=(not shown): {_QUOTED.sub('…', problem['msg'])}"
        return f"{name}={problem['input']!r}: {problem['msg']}"

    @classmethod
    def _variable(cls, field: str) -> str:
        if field.startswith(PREFIX):
            return field
        alias = cls.model_fields[field].validation_alias if field in cls.model_fields else None
        return alias if isinstance(alias, str) else f"{PREFIX}{field.upper()}"

    @classmethod
    def _by_field(cls) -> dict[str, str]:
        """What the variables of settings would be called by their fields, which have another name: that name."""
        named = {f"{PREFIX}{field.upper()}": cls._variable(field) for field in cls.model_fields}
        return {name: variable for name, variable in named.items() if name != variable}

    @classmethod
    def _help(cls, program: str) -> str:
        lines = [f"usage: [VARIABLE=value …] {program}", "", (cls.__doc__ or "").strip().splitlines()[0], ""]
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = "none" if default in (None, "", ()) else str(default)
            if isinstance(default, tuple) and default:
                shown = ",".join(map(str, default))
            lines.append(f"  {cls._variable(name)}  (default: {shown})")
            lines += textwrap.wrap(field.description or "", 110, initial_indent="      ", subsequent_indent="      ")
        return "\n".join(lines)


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)
