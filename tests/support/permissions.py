"""Root without its right to pass over the permissions of files, for tests that run as root."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words for each set of 64 capabilities
_OVERRIDE = 1 << 1 | 1 << 2 | 1 << 3  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
_libc = ctypes.CDLL(None, use_errno=True)


def under_permissions(function: Callable[[], Result]) -> Result:
    """The result of `function`, called where permissions hold for root too.

    Linux keeps capabilities by thread: it runs in one that has given them up.
    """
    with ThreadPoolExecutor(1) as pool:
        if os.geteuid() == 0:
            pool.submit(_give_up).result()
        return pool.submit(function).result()


def _give_up() -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)  # of this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same for the upper 32
    for call in (_libc.capget, _libc.capset):
        if call(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capabilities")
        sets[0] &= ~_OVERRIDE
        sets[1] &= ~_OVERRIDE
