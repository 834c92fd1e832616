"""`tutelage files`, `token`, `env`: thin over the client; the first token of a server is made on its home itself."""

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.jobs import connect
from tutelage.cli.output import Json, print_json, print_table
from tutelage.errors import ConfigError, DataError

files_app = typer.Typer(help="Files on a server.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens: who may use a server, and for what.", no_args_is_help=True)
env_app = typer.Typer(help="Secrets that jobs get as environment variables.", no_args_is_help=True)

HomeOption = Annotated[
    Path | None, typer.Option(help="Work on the home of a server itself, also while none runs; for its first token.")
]
DatabaseOption = Annotated[
    str | None, typer.Option(envvar="TUTELAGE_DATABASE", help="With --home: where the records are, if elsewhere.")
]
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(files_app, name="files")
    app.add_typer(token_app, name="token")
    app.add_typer(env_app, name="env")


@files_app.command()
def upload(
    path: Path,
    purpose: Annotated[str, typer.Option(help="conversations, preference (rows are checked), or any other word.")] = (
        "conversations"
    ),
    as_json: Json = False,
) -> None:
    """Upload a file; the same bytes twice are one file."""
    file = connect().files.upload(path, purpose)
    if as_json:
        print_json(file)
    else:
        print(file.id)


@files_app.command("ls")
def list_files(
    purpose: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: Json = False,
) -> None:
    """Files, newest first."""
    found = connect().files.list(purpose, limit)
    if as_json:
        print_json(found)
        return
    rows = [(file.id, file.filename, file.bytes, file.created_at) for file in found]
    print_table(("file", "name", "bytes", "created"), rows, empty="no files; upload one with: tutelage files upload")


@files_app.command()
def get(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The id of a file.")],
    output: Annotated[Path | None, typer.Option(help="Where to; unset, standard output.")] = None,
) -> None:
    """Download a file."""
    client = connect()
    if output is None:
        sys.stdout.buffer.write(client.files.content(file))
    else:
        client.files.download(file, output)
        print(output)


@files_app.command("rm")
def remove(file: Annotated[str, typer.Argument(metavar="FILE", help="The id of a file.")]) -> None:
    """Delete a file that no unfinished job needs."""
    connect().files.delete(file)
    print(f"{file}: deleted")


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What or whom it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, submit, worker, admin; may be repeated. Unset, read and submit.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="30d", help="Hours (h), days (d) or weeks (w).")] = None,
    organization: Annotated[str, typer.Option(help="With --home: whose it is; made if there is none.")] = "default",
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is printed this once."""
    scopes = scope or ["read", "submit"]
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
    """Tokens, newest first."""
    found = connect().tokens.list()
    if as_json:
        print_json(found)
        return
    rows = [(one.id, one.name, one.scopes, one.last_used_at, "revoked" if one.revoked_at else "") for one in found]
    empty = "no tokens; make one with: tutelage token create NAME"
    print_table(("token", "name", "scopes", "last used", ""), rows, empty=empty)


@token_app.command("revoke")
def revoke_token(token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, not its secret.")]) -> None:
    """From now on nobody gets in with it."""
    connect().tokens.revoke(token)
    print(f"{token}: revoked")


@env_app.command("set")
def set_secret(
    name: str,
    value: Annotated[str | None, typer.Argument(help="Unset, it is read from standard input, out of the history.")] = (
        None
    ),
) -> None:
    """Give jobs an environment variable, such as HF_TOKEN; nobody can read it again."""
    secret = value if value is not None else sys.stdin.readline().rstrip("\n")
    if not secret:
        raise ConfigError(f"{name}: the value is empty; give it, or write: tutelage env set {name} < file")
    connect().secrets.set(name, secret)
    print(f"{name}: set")


@env_app.command("ls")
def list_secrets(as_json: Json = False) -> None:
    """Names of the secrets."""
    names = connect().secrets.list()
    if as_json:
        print_json(names)
    else:
        print_table(("secret",), [(name,) for name in names], empty="no secrets; set one with: tutelage env set NAME")


@env_app.command("rm")
def delete_secret(name: str) -> None:
    """Jobs that begin from now on do not get it."""
    connect().secrets.delete(name)
    print(f"{name}: deleted")


@env_app.command("import")
def import_secrets(path: Annotated[Path, typer.Argument(help="Lines of NAME=value, # for remarks.")]) -> None:
    """Set all secrets of a .env file."""
    client = connect()
    for name, value in _read_env(path).items():
        client.secrets.set(name, value)
        print(f"{name}: set")


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
    if unit is None or not text[:-1].isdigit() or int(text[:-1]) == 0:
        raise ConfigError(f"--expires {text}: write a number of hours, days or weeks, such as 12h, 30d or 4w")
    return timedelta(seconds=int(text[:-1]) * unit)


def _on_home(
    home: Path, database: str | None, organization: str, name: str, scopes: list[str], expires: datetime | None
) -> tuple[str, str]:
    from tutelage.cli.extras import needs

    with needs("server"):
        from tutelage.jobs.access import Access, scopes_of
        from tutelage.jobs.database import Database
        from tutelage.server.settings import ServerSettings, secret_key

    settings = ServerSettings(home=home, database=database)
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
