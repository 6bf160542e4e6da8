"""Running `condinst` in tests."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]  # words of the command -> exit status, stdout, stderr


def assert_refused(ran: tuple[int, str, str], *words: str) -> None:
    """One line on stderr with `words`, nothing on stdout, status 2."""
    status, out, err = ran
    assert (status, out) == (2, "")
    assert err.startswith("condinst: ") and err.count("\n") == 1
    for word in words:
        assert word in err
