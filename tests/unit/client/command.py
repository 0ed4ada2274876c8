"""The command line, run in this process."""

from typer.testing import CliRunner, Result

from likeness_client.commands.app import app


def likeness(
    *arguments: object,
    server: str | None = None,
    indexer: str | None = None,
    columns: int = 200,
    stdin: str | None = None,
) -> Result:
    environment = {"COLUMNS": str(columns), "LIKENESS_GATEWAY": server, "LIKENESS_INDEXER": indexer}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment, input=stdin)
