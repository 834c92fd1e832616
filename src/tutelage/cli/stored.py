"""`tutelage files`, `token`, `env`: thin over the client; the first token of a server is made on its home itself."""

import getpass
import shutil
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.choices import require_known
from tutelage.cli.connection import connect
from tutelage.cli.output import Json, print_json, print_table
from tutelage.errors import ConfigError, DataError

files_app = typer.Typer(help="Upload files to a server, list them, get them back.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens: who may use a server, and for what.", no_args_is_help=True)
env_app = typer.Typer(help="Secrets that all jobs get as environment variables.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="FILE", help="The id of a file, as `tutelage files ls` shows it.")]
SecretName = Annotated[str, typer.Argument(metavar="NAME", help="Of the variable, such as HF_TOKEN.")]
HomeOption = Annotated[
    Path | None, typer.Option(help="Work on the home of a server itself, also while none runs; for its first token.")
]
DatabaseOption = Annotated[
    str | None, typer.Option(envvar="TUTELAGE_DATABASE", help="With --home: where the records are, if elsewhere.")
]
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@files_app.command()
def upload(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file here.")],
    purpose: Annotated[
        str, typer.Option(help="conversations or preference, whose rows are checked, or any other word.")
    ] = "conversations",
    as_json: Json = False,
) -> None:
    """Upload a file and print its id; the same bytes twice are one file."""
    file = connect().files.upload(path, purpose)
    if as_json:
        print_json(file)
    else:
        print(file.id)


@files_app.command("ls")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only those of this purpose.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List files, newest first."""
    found = connect().files.list(purpose, limit)
    if as_json:
        print_json(found)
        return
    rows = [(file.id, file.filename, file.bytes, file.created_at) for file in found]
    empty = f"no files of {purpose}" if purpose else "no files; upload one with: tutelage files upload PATH"
    print_table(("file", "name", "bytes", "created"), rows, empty=empty)


@files_app.command()
def get(
    file: FileId,
    output: Annotated[Path | None, typer.Option(help="Where to; unset, standard output.")] = None,
    as_json: Json = False,
) -> None:
    """Download a file."""
    if output is None and as_json:
        raise ConfigError("--json: the file itself would go to standard output; say where to with --output")
    client = connect()
    if output is not None:
        client.files.download(file, output)
        if as_json:
            print_json({"id": file, "path": str(output), "bytes": output.stat().st_size})
        else:
            print(output)
        return
    # Only once it is whole and what its id says; and never in memory.
    with tempfile.TemporaryDirectory() as folder:
        with client.files.download(file, Path(folder, "content")).open("rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@files_app.command("rm")
def remove(file: FileId, as_json: Json = False) -> None:
    """Delete a file that no unfinished job needs."""
    connect().files.delete(file)
    if as_json:
        print_json({"id": file, "deleted": True})
    else:
        print(f"{file}: deleted")


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What or whom it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, submit, worker, admin; may be repeated. Unset, read and submit.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="30d", help="After so many hours (h), days (d) or weeks (w); unset, never.")
    ] = None,
    organization: Annotated[str, typer.Option(help="With --home: whose it is; made if there is none.")] = "default",
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is printed this once."""
    from tutelage.jobs.records import Scope

    scopes = scope or ["read", "submit"]
    for one in scopes:
        require_known("--scope", one, (known.value for known in Scope))
    expires_at = datetime.now(timezone.utc) + _age(expires) if expires is not None else None
    if home is not None:
        secret, identity = _on_home(home, database, organization, name, scopes, expires_at)
    else:
        new = connect().tokens.create(name, scopes, expires_at=expires_at)
        secret, identity = new.secret, new.token.id
    if as_json:
        print_json({"id": identity, "secret": secret})
    else:
        print(secret)
        print("set it as TUTELAGE_API_KEY; it is not shown again", file=sys.stderr)


@token_app.command("ls")
def list_tokens(as_json: Json = False) -> None:
    """List tokens, newest first, without their secrets."""
    found = connect().tokens.list()
    if as_json:
        print_json(found)
        return
    rows = [(one.id, one.name, one.scopes, one.last_used_at, "revoked" if one.revoked_at else "") for one in found]
    empty = "no tokens; make one with: tutelage token create NAME"
    print_table(("token", "name", "scopes", "last used", ""), rows, empty=empty)


@token_app.command("revoke")
def revoke_token(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id from `tutelage token ls`, not its secret.")],
    as_json: Json = False,
) -> None:
    """Revoke a token: from now on nobody gets in with it."""
    revoked = connect().tokens.revoke(token)
    if as_json:
        print_json(revoked)
    else:
        print(f"{token}: revoked")


@env_app.command("set")
def set_secret(
    name: SecretName,
    value: Annotated[
        str | None,
        typer.Argument(metavar="VALUE", help="Better unset, out of the shell's history: then it is asked for."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give jobs an environment variable; nobody can read its value again.

    From a file, all of its lines: tutelage env set NAME < file
    """
    secret = value if value is not None else _secret_of_input(name)
    if not secret:
        raise ConfigError(f"{name}: the value is empty; give it, or write: tutelage env set {name} < file")
    connect().secrets.set(name, secret)
    _print_set([name], as_json)


@env_app.command("ls")
def list_secrets(as_json: Json = False) -> None:
    """List the names of the secrets."""
    names = connect().secrets.list()
    if as_json:
        print_json(names)
    else:
        print_table(("secret",), [(name,) for name in names], empty="no secrets; set one with: tutelage env set NAME")


@env_app.command("rm")
def delete_secret(name: SecretName, as_json: Json = False) -> None:
    """Delete a secret: jobs that begin from now on do not get it."""
    connect().secrets.delete(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        print(f"{name}: deleted")


@env_app.command("import")
def import_secrets(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Lines of NAME=value, # for remarks.")],
    as_json: Json = False,
) -> None:
    """Set all secrets of a .env file."""
    found = _read_env(path)
    client = connect()
    for name, value in found.items():
        client.secrets.set(name, value)
    _print_set(list(found), as_json)


def _print_set(names: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"set": names})
        return
    for name in names:
        print(f"{name}: set")


def _secret_of_input(name: str) -> str:
    """Typed unseen on a terminal; else all of standard input, without the end of its last line."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{name}: ")
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start} of standard input is not UTF-8; give a text") from error


def _read_env(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a text file of lines NAME=value") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise DataError(f"{path}:{number}: no line such as NAME=value; mend it or put # before it")
        value = value.strip()
        found[name.strip()] = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return found


def _age(text: str) -> timedelta:
    unit = UNITS.get(text[-1:])
    if unit is None or not text[:-1].isdecimal() or int(text[:-1]) == 0:
        raise ConfigError(f"--expires {text}: write a number of hours, days or weeks, such as 12h, 30d or 4w")
    return timedelta(seconds=int(text[:-1]) * unit)


def _on_home(
    home: Path, database: str | None, organization: str, name: str, scopes: list[str], expires: datetime | None
) -> tuple[str, str]:
    from tutelage.cli.extras import needs

    with needs("server"):
        from tutelage.files import make_folder
        from tutelage.jobs.access import Access, scopes_of
        from tutelage.jobs.database import Database
        from tutelage.server.settings import ServerSettings, secret_key

    settings = ServerSettings(home=home, database=database)
    make_folder(home, "--home")
    key = secret_key(home)
    opened = Database(settings.database_url)
    try:
        opened.migrate()
        access = Access(opened, key)
        expires_at = expires.timestamp() if expires is not None else None
        new = access.create_token(access.organization(organization), name, scopes_of(scopes), expires_at=expires_at)
    finally:
        opened.close()
    return new.secret, new.token.id
