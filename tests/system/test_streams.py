"""Streams whose errors are kept: full, closed, and of an encoding that lacks letters."""

import errno
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

from condinst_infer.system.streams import PatientStream, open_standard_streams


def test_letters_that_an_encoding_lacks_are_escaped() -> None:
    content = BytesIO()
    stream = PatientStream(TextIOWrapper(content, encoding="ascii"))
    text = "naïve \udcff\n"
    assert stream.write(text) == len(text)
    stream.flush()
    assert content.getvalue() == b"na\\xefve \\udcff\n" and stream.error is None
    assert stream.encoding == "ascii"


def test_the_first_error_is_kept_and_the_rest_goes_nowhere() -> None:
    with Path("/dev/full").open("w") as full:
        stream = PatientStream(full)
        stream.write("lost")
        stream.flush()
        assert stream.error is not None and stream.error.errno == errno.ENOSPC
        assert stream.write("more") == 4
        stream.flush()
        assert os.fstat(full.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116


def test_open_streams_stay_as_they_are() -> None:
    before = sys.stdout, sys.stderr
    open_standard_streams()
    assert (sys.stdout, sys.stderr) == before


def test_closed_streams_are_opened_on_nothing() -> None:
    code = (
        "from condinst_infer.system.streams import open_standard_streams as o; import os, sys; o();"
        "print('x'); print('y', file=sys.stderr); sys.exit(os.open(os.devnull, 0) < 3)"
    )
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, code])
    assert done.returncode == 0  # no other file has their numbers
