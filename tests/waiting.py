"""How long a test waits for what another thread does."""

import time
from typing import Any

WAIT = 20  # seconds after which a test that hangs fails


def eventually(condition: Any) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
