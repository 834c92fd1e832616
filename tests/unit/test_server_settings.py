"""What a server is told, and the key of the secrets."""

import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tutelage.errors import ConfigError
from tutelage.server.settings import KEY_VARIABLE, ServerSettings, is_loopback, secret_key


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1:80", False),
        ("1270.0.0.1", False),
        ("[", False),
    ],
)
def test_what_is_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert ServerSettings(home=Path("x"), host=host).open_on_loopback is expected


def test_tokens_may_be_wanted_on_loopback_too() -> None:
    assert ServerSettings(home=Path("x")).open_on_loopback
    assert not ServerSettings(home=Path("x"), require_tokens=True).open_on_loopback
    assert not ServerSettings(home=Path("x"), database="postgresql://x/y").open_on_loopback


@pytest.mark.parametrize(
    ("files", "expected"),
    [(None, True), ("/mnt/files", True), ("file:///mnt/files", True), ("s3://bucket", False), ("memory://x", False)],
)
def test_with_a_store_of_others_tokens_are_needed(files: str | None, expected: bool) -> None:
    """Section 7: no token is needed only on loopback with the embedded store. The records are embedded all the same:
    one process works in the folder."""
    settings = ServerSettings(home=Path("x"), files=files)
    assert settings.open_on_loopback is expected
    assert settings.is_embedded


def test_of_many_processes_at_once_one_makes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All get the same, and nobody else may read it."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(secret_key(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]
    assert Fernet(found[0]).decrypt(Fernet(found[0]).encrypt(b"x")) == b"x"


def test_the_key_may_come_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "a key")
    assert secret_key(tmp_path) == b"a key"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_key_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "secret.key").write_bytes(b"\n")
    with pytest.raises(ConfigError, match="backup"):
        secret_key(tmp_path)
