"""Secrets in a stream: masked wherever the stream is cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tutelage.worker.masking import StreamMasker

SECRET = st.text("ab", min_size=6, max_size=12)
TEXT = st.lists(st.one_of(st.text("abc\n", max_size=8), SECRET), max_size=12).map("".join)


def fed(secrets: list[str], text: str, cuts: list[int]) -> str:
    """What comes out when the text is cut at these places."""
    masker = StreamMasker(secrets)
    content = text.encode()
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    parts = [masker.feed(content[begin:end]) for begin, end in pairwise(places)]
    return b"".join([*parts, masker.end()]).decode()


@given(SECRET, TEXT, st.lists(st.integers(0, 200), max_size=20))
def test_one_secret_is_replaced_as_in_the_whole_text(secret: str, text: str, cuts: list[int]) -> None:
    """Expected: `str.replace` on the text that was never cut."""
    assert fed([secret], text, cuts) == text.replace(secret, "***")


@given(st.lists(SECRET, max_size=5), TEXT, st.lists(st.integers(0, 200), max_size=20))
def test_no_secret_comes_out_and_cuts_do_not_matter(secrets: list[str], text: str, cuts: list[int]) -> None:
    """The alphabet has no `*`, so that no secret comes about by masking another one."""
    out = fed(secrets, text, cuts)
    assert not any(secret in out for secret in secrets)
    assert out == fed(secrets, text, [])


def test_the_longer_of_two_secrets_goes_as_a_whole() -> None:
    """`sk-abcdef` begins as `sk-abcdef-live` does: replacing the short one first would leave `-live`."""
    assert fed(["sk-abcdef", "sk-abcdef-live"], "x sk-abcdef-live y sk-abcdef z", [11]) == "x *** y *** z"


def test_a_secret_that_is_cut_everywhere() -> None:
    """One byte at a time, two-byte characters in it."""
    masker = StreamMasker(["pässwörd"])
    out = b"".join(masker.feed(bytes([byte])) for byte in "my pässwörd! päss".encode()) + masker.end()
    assert out.decode() == "my ***! päss"


def test_only_what_may_be_a_secret_is_held_back() -> None:
    """`pass` may go on as the secret does; a whole line never waits."""
    masker = StreamMasker(["password"])
    assert masker.feed(b"step 1\nthe pass") == b"step 1\nthe "
    assert masker.feed(b"ion\n") == b"passion\n"


def test_short_secrets_are_left() -> None:
    """Below six characters, as `jobs.masks` says."""
    assert fed(["12345"], "12345 is a number", []) == "12345 is a number"
