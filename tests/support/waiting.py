"""How long a test waits for what another thread does."""

import time
from typing import Any

WAIT = 20  # seconds after which a test that hangs fails


def eventually(condition: Any, within: float = WAIT, pause: float = 0.002) -> Any:
    """What `condition` gives once it is true; asked every `pause` seconds."""
    end = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(pause)
    return found
