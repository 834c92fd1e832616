"""`tutelage serve`, `backup`, `restore`: their options. What they do is in `tutelage.server`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.output import Json, JsonLines, print_json, saying

Home = Annotated[Path, typer.Option(help="The folder of everything the server stores.")]
Database = Annotated[
    str | None, typer.Option(envvar="TUTELAGE_DATABASE", help="postgresql://…; unset, SQLite in --home.")
]
Files = Annotated[
    str | None, typer.Option(envvar="TUTELAGE_FILES", help="A store such as s3://bucket/path; unset, in --home.")
]
DEFAULT_HOME = Path("tutelage-home")
GIGABYTE = 1024**3


def serve(
    home: Home = DEFAULT_HOME,
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine need tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Run no jobs on this machine.")] = False,
    database: Database = None,
    files: Files = None,
    require_tokens: Annotated[
        bool, typer.Option("--require-tokens", help="From this machine too, for a server behind a proxy.")
    ] = False,
    max_file_gb: Annotated[float, typer.Option(min=0.001, help="The largest file that may be uploaded.")] = 20.0,
    lease: Annotated[float, typer.Option(min=1.0, help="Seconds a worker may be silent before its job is retried.")] = (
        30.0
    ),
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Of the API, on the one address; more than 1 needs --database.")
    ] = 1,
    as_json: JsonLines = False,
) -> None:
    """Run the server: queue, API and web page, and one worker on this machine. ctrl-C ends it."""
    from tutelage.cli.extras import needs
    from tutelage.cli.logs import log_to_stderr

    with needs("server"):
        from tutelage.server.serve import serve as run_server
        from tutelage.server.settings import ServerSettings

    settings = ServerSettings(
        home=home,
        host=host,
        port=port,
        database=database,
        files=files,
        max_file_bytes=int(max_file_gb * GIGABYTE),
        lease_seconds=lease,
        require_tokens=require_tokens,
        processes=processes,
    )
    log_to_stderr()
    run_server(settings, with_worker=not no_worker, say=saying(as_json), prepare=log_to_stderr)


def backup(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The archive to make, such as monday.tar.")],
    home: Home = DEFAULT_HOME,
    database: Database = None,
    files: Files = None,
    as_json: Json = False,
) -> None:
    """Write all records, files and the key of the secrets into one archive; the server may run meanwhile."""
    from tutelage.cli.extras import needs

    with needs("server"):
        from tutelage.server.backup import back_up
        from tutelage.server.settings import ServerSettings

    done = back_up(ServerSettings(home=home, database=database, files=files), archive)
    if as_json:
        print_json({"archive": archive, **_counts(done)})
        return
    missing = f"; {_files(done.missing)} in the records and gone from the store" if done.missing else ""
    print(f"{archive}: {done.rows} records, {_files(done.contents)} of {done.bytes} bytes{missing}")
    print("it holds the key of the secrets: keep it where nobody else can read it")


def restore(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="What `tutelage backup` made.")],
    home: Home = DEFAULT_HOME,
    database: Database = None,
    files: Files = None,
    as_json: Json = False,
) -> None:
    """Fill a home that has no records yet from an archive."""
    from tutelage.cli.extras import needs

    with needs("server"):
        from tutelage.server.backup import restore as restore_from
        from tutelage.server.settings import ServerSettings

    done = restore_from(ServerSettings(home=home, database=database, files=files), archive)
    if as_json:
        print_json({"home": home, **_counts(done)})
        return
    print(f"{home}: {done.rows} records, {_files(done.contents)} of {done.bytes} bytes")
    print(f"start it with: tutelage serve --home {home}")


def _counts(done: Any) -> dict[str, int]:
    return {name: getattr(done, name) for name in ("rows", "contents", "bytes", "missing")}


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"
