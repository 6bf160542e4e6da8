"""Failures of a training run: what is the user's or the machine's in one sentence, with advice."""

import errno
import os
import re
import signal

import torch
from torch import distributed

from condinst_infer.errors import CondInstError, TrainingError
from condinst_infer.system.signals import Interrupted

_FULL = os.strerror(errno.ENOSPC)
_NO_MEMORY = re.compile(
    r"can.t allocate memory|not enough memory|insufficient memory|bad_alloc", re.IGNORECASE
)
_SHARED_MEMORY = re.compile(r"/torch_\w+|shared memory", re.IGNORECASE)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid[()s\d, ]*\) (.*?)(?:\. |\.?$)")
_LOST_PEER = re.compile(r"closed by peer|reset by peer|\bgloo\b|\bNCCL\b", re.IGNORECASE)


def error_with_advice(error: BaseException, advice: str) -> BaseException:
    """The error to raise in place of `error`: with `advice` in its text, and of a clear class.

    Returns:
        `Interrupted` for a KeyboardInterrupt; the same class for an error of ours; `TrainingError`
        for one of the machine. Any other is `error` itself with a note: it may be a mistake of
        ours, whose traceback is needed.
    """
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return Interrupted(number, advice)
    if isinstance(error, CondInstError):
        return type(error)(_joined(str(error), advice))
    sentence = machine_sentence(error)
    if sentence is not None:
        return TrainingError(_joined(sentence, advice))
    if advice:
        error.add_note(advice)
    return error


def _joined(text: str, advice: str) -> str:
    """Two sentences, or `text` as it is."""
    if not advice:
        return text
    return f"{text.rstrip('.')}. {advice}"


def machine_sentence(error: BaseException) -> str | None:
    """One sentence about memory, disk, GPU or a process that died; None about anything else."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the memory of the GPU is full. A new run takes less with a smaller "
            "--images-per-batch, --set crop=384 or --set accumulate=2."
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            "the memory of this machine is full. Fewer processes load images with --set workers=0; "
            "a new run takes less with a smaller --images-per-batch or --set accumulate=2."
        )
    if isinstance(error, RuntimeError):
        return _sentence_of_torch(error, text)
    if isinstance(error, OSError):
        return _sentence_of_system(error, text)
    if isinstance(error, EOFError):  # a pipe whose other end is gone
        return "a process that loads images died."
    return None


def _sentence_of_torch(error: RuntimeError, text: str) -> str | None:
    """`machine_sentence` of what torch reports as RuntimeError."""
    died = _DEAD_WORKER.search(text)
    if (died or _FULL in text) and _SHARED_MEMORY.search(text):
        return (
            "the shared memory of this machine, /dev/shm, is full. Do without it by --set "
            "workers=0, or give a container more with --shm-size."
        )
    if died:
        return (
            f"a process that loads images {died[1]}. The system kills processes so where memory "
            "runs out; fewer load images with --set workers=0."
        )
    if _FULL in text:
        return f"a file of the run can't be written: {_FULL}."
    if text.startswith("CUDA error"):
        return f"the GPU failed: {str(error).splitlines()[0].rstrip('.')}."
    if distributed.is_initialized() and _LOST_PEER.search(text):
        return "another process of this training ended; its own message says why."
    return None


def _sentence_of_system(error: OSError, text: str) -> str:
    """`machine_sentence` of what the system refused."""
    if error.errno is None or error.strerror is None:
        return f"{text.rstrip('.') or type(error).__name__}."
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return f"a file of the run can't be written: {error.strerror}."
    return f"the system refused something: {error.strerror}."
