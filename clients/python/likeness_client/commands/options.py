"""What every command shares: options, the connection to a gateway or an indexer, and how failures are told."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from likeness_client import defaults
from likeness_client.errors import GATEWAY_UNREACHABLE, INDEXER_UNREACHABLE, LikenessError
from likeness_client.render import Format, Ids, err

if TYPE_CHECKING:
    from likeness_client.client import Client
    from likeness_client.filters import Filter
    from likeness_client.indexer.client import IndexerClient
    from likeness_client.security import Security

_Client = TypeVar("_Client")

INTERRUPTED = 130
"""The exit code of a command that the user interrupted."""

Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="ADDRESS", help=f"The gateway's host:port, instead of ${defaults.ADDRESS_VARIABLE}."
    ),
]
Indexer = Annotated[
    str | None,
    typer.Option(
        "--indexer", metavar="ADDRESS", help=f"The indexer's host:port, instead of ${defaults.INDEXER_VARIABLE}."
    ),
]
IndexerInstead = Annotated[
    str | None,
    typer.Option("--indexer", metavar="ADDRESS", help="Ask this indexer (host:port), instead of the gateway."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.001,
        help="Longest wait for one call's answer, an hour at most; what goes on for long may take any time.",
    ),
]


def in_text(told: str | None) -> str | None:
    """For options and arguments that are sent: what cannot be written as UTF-8 is wrong usage."""
    if told is not None:
        require_text([told])
    return told


Collection = Annotated[str, typer.Option("--collection", metavar="NAME", help="The collection.", callback=in_text)]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="CONDITION", help="Only items for which it is true; see `likeness search --help`."),
]
ShownIds = Annotated[Ids, typer.Option("--ids", help="How much of each id the table shows.")]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template", metavar="TEXT", help="In what words; {} stands for the label. Not named: a photo of a {}."
    ),
]
Scale = Annotated[
    float | None, typer.Option("--scale", metavar="X", help="Greater is more certain; not named: the model's.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print.")]
_SERVICES = {"server": "gateway", "indexer": "indexer"}
_UNREACHABLE = {
    GATEWAY_UNREACHABLE: ("--server", defaults.ADDRESS_VARIABLE),
    INDEXER_UNREACHABLE: ("--indexer", defaults.INDEXER_VARIABLE),
}


@dataclass(frozen=True)
class Trust:
    """Files of an API key and of TLS, as told before the command's name."""

    api_key_file: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True)
class Connection:
    """Where gateway and indexer are and how long to wait for them, as told before the command's name."""

    server: str = defaults.ADDRESS
    timeout_s: float = defaults.TIMEOUT_S
    indexer: str = defaults.INDEXER_ADDRESS
    trust: Trust = Trust()

    def trusting(self, open_client: Callable[["Security"], _Client]) -> _Client:
        """A client with API key and TLS; files that cannot be used are wrong usage."""
        from likeness_client.security import Security  # noqa: PLC0415  # as the clients

        told = self.trust
        try:
            key = Security.of_environment().api_key
            if told.api_key_file is not None:
                key = told.api_key_file.read_text().strip() or None
            return open_client(Security(key, told.tls, told.tls_ca, told.tls_cert, told.tls_key))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            wrong_usage(f"API key or TLS cannot be used: {why}.")


@contextmanager
def connected(context: typer.Context, server: str | None, timeout_s: float | None) -> Iterator["Client"]:
    """A client; a failure of the gateway inside is told, and ends the command with exit code 1."""
    from likeness_client.client import Client  # noqa: PLC0415  # 0.4 s that --help need not wait for

    told = _told(context, "server", server)

    def open_client(security: "Security") -> Client:
        return Client(server or told.server, timeout=timeout_s or told.timeout_s, security=security)

    with told.trusting(open_client) as client:
        try:
            yield client
        except LikenessError as error:
            tell(error)
            raise typer.Exit(1) from None


@contextmanager
def connected_indexer(
    context: typer.Context, indexer: str | None, timeout_s: float | None
) -> Iterator["IndexerClient"]:
    """A client; a failure inside, of the indexer or of a file, is told, and ends the command with exit code 1."""
    from likeness_client.indexer.client import IndexerClient  # noqa: PLC0415  # 0.5 s that --help need not wait for

    told = _told(context, "indexer", indexer)

    def open_client(security: "Security") -> IndexerClient:
        return IndexerClient(indexer or told.indexer, timeout=timeout_s or told.timeout_s, security=security)

    with told.trusting(open_client) as client:
        try:
            yield client
        except LikenessError as error:
            tell(error)
            raise typer.Exit(1) from None


def connected_to_either(
    context: typer.Context, server: str | None, indexer: str | None, timeout_s: float | None
) -> AbstractContextManager["Client | IndexerClient"]:
    """A client of the gateway or of the indexer, for what both answer; failures inside are told as above."""
    if asks_indexer(context, server, indexer):
        return connected_indexer(context, indexer, timeout_s)
    return connected(context, server, timeout_s)


def asks_indexer(context: typer.Context, server: str | None, indexer: str | None) -> bool:
    """Whether a command that both services answer asks the indexer.

    The one that the command line names is asked, behind the command's name sooner than before it; naming both at one
    place is wrong usage. Else the indexer is asked if the environment names it alone, else the gateway.

    Args:
        context: the command's.
        server: where the gateway is, if that was told behind the command's name.
        indexer: where the indexer is, likewise.
    """
    behind = [name for name, address in (("server", server), ("indexer", indexer)) if address is not None]
    for named in (behind, _named(context, "COMMANDLINE")):
        if len(named) > 1:
            wrong_usage(f"`{context.command_path}` asks one service: use --server ADDRESS or --indexer ADDRESS.")
        if named:
            return named == ["indexer"]
    return _named(context, "ENVIRONMENT") == ["indexer"]


def _told(context: typer.Context, asked: str, address: str | None) -> Connection:
    """What was told before the command's name; naming the other service alone is wrong usage.

    Args:
        context: the command's.
        asked: the service that the command speaks to, ``"server"`` or ``"indexer"``.
        address: where it is, if that was told behind the command's name.
    """
    named = _named(context, "COMMANDLINE")
    if named and asked not in named and address is None:
        command, service = context.command_path, _SERVICES[asked]
        wrong_usage(f"--{named[0]} is not for `{command}`, which speaks to the {service}: use --{asked} ADDRESS.")
    return context.find_object(Connection) or Connection()


def _named(context: typer.Context, where: str) -> list[str]:
    """The services named there: before the command's name (``COMMANDLINE``), or in the ``ENVIRONMENT``."""
    # By name: typer has click within, or beside it, and a type of each.
    sources = {name: context.find_root().get_parameter_source(name) for name in _SERVICES}
    return [name for name, source in sources.items() if source is not None and source.name == where]


def condition(where: str | None) -> "Filter | None":
    """The filter of a ``--where``; what is no condition is told with its place, and is wrong usage."""
    if where is None:
        return None
    require_text([where])
    from likeness_client.where import WhereError, parse_where  # noqa: PLC0415  # lark takes 0.2 s to import

    try:
        return parse_where(where)
    except WhereError as error:
        wrong_usage(f"--where is no condition:\n{error}")


def confirm(question: str) -> None:
    """Asks on stderr: no ends the command with exit code 1, an interrupt with that of interrupts."""
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort as refused:
        if not isinstance(refused.__context__, KeyboardInterrupt):
            raise
        err().print("\nInterrupted.")
        raise typer.Exit(INTERRUPTED) from None


def tell(error: LikenessError) -> None:
    """Says on stderr what failed and what to do."""
    console = err()
    if error.reason in _UNREACHABLE:
        option, variable = _UNREACHABLE[error.reason]
        console.print(f"{error.message[:1].upper()}{error.message[1:]}.")
        console.print(f"Start one with `make up`, or name another by {option} ADDRESS or the variable {variable}.")
        return
    console.print(str(error))
    if error.reason in ("KEY_MISSING", "KEY_INVALID"):
        console.print("The key is read from the variable LIKENESS_API_KEY, or from the file of --api-key-file.")
    for violation in error.violations:
        line = f"{violation.field}: {violation.description}"
        if line not in error.message:
            console.print(f"  {line}")
    if error.retry_after_s is not None:
        console.print(f"Trying again after {error.retry_after_s:g} s may help.")


def is_text(told: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot, as which a command line's odd bytes come."""
    try:
        told.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_text(*told: Iterable[str] | None) -> None:
    """A text that cannot be written as UTF-8 is wrong usage."""
    for each in (text for texts in told for text in texts or ()):
        if not is_text(each):
            wrong_usage(f"{each!r} is no text: it cannot be written as UTF-8.")


def wrong_usage(message: str) -> NoReturn:
    """Says on stderr what was wrong with the command line, and ends with exit code 2."""
    err().print(message)
    raise typer.Exit(2)
