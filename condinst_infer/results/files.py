"""Results as files and on the screen."""

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from condinst_infer.errors import InputError
from condinst_infer.results.draw import write_image
from condinst_infer.system.outputs import write_text

_PICTURES = (".png", ".jpg", ".jpeg")


def save_result(
    path: Path, plot: Callable[[], np.ndarray], writers: Mapping[str, Callable[[], str]]
) -> None:
    """Write a picture of `plot`, or the text that a writer makes for the suffix of `path`.

    Raises:
        InputError: there is no writer for the suffix, or the file can't be written.
    """
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        write_image(path, plot())
    elif suffix in writers:
        write_text(path, writers[suffix]())
    else:
        known = ", ".join((*_PICTURES, *writers))
        raise InputError(f"{path} can't be written; its name must end in one of {known}.")


def show_picture(result: object, picture: np.ndarray) -> None:
    """Show `picture`, BGR uint8 [H, W, 3], of `result`: in a notebook's cell, or in a viewer."""
    try:
        from IPython import get_ipython  # pyright: ignore
        from IPython.display import display  # pyright: ignore
    except ImportError:
        notebook = False
    else:
        notebook = get_ipython() is not None and hasattr(get_ipython(), "kernel")
    if notebook:
        display(result)  # pyright: ignore - by its _repr_png_
    else:
        Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)).show()
