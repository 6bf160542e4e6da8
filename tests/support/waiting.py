"""How long a test waits for what another thread does, and whether processes are left."""

import os
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


def is_empty_group(group: int) -> bool:
    """True if no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
