"""The picture of the architecture: two data paths, and below them the rooms in their rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.project.test_package import ROWS
from tests.support.architecture import shown

PATH = Path(__file__).parent / "pictures" / "architecture.svg"

WIDTH = 440  # units of the drawing; a phone shows it at 0.8, a wide page at 1.25
MARGIN, GAP = 10, 8
BOX, STEP = 28, 36  # height of a box, from one row of rooms to the next
LABEL = 26  # room for the number of a row
PATHS = {
    "From an image to results (pipeline.py)": (
        *("image", "processing", "runtimes", "processing", "results"),
    ),
    "From a checkpoint to an engine (verification checks both)": (
        *("checkpoint", "export", ".onnx", "trt", ".engine"),
    ),
}
PLAIN, DATA = ("#f1f3f5", "#868e96"), ("#ffffff", "#495057")  # fill and border
COLOURS = {  # of the rooms that a data path goes through, there and in the rows
    "processing": ("#d0ebff", "#1c7ed6"),
    "runtimes": ("#d3f9d8", "#2f9e44"),
    "results": ("#ffe8cc", "#e8590c"),
    "checkpoint": ("#e5dbff", "#7048e8"),
    "export": ("#ffdeeb", "#d6336c"),
    "trt": ("#fff3bf", "#f08c00"),
}
ALT = "Two data paths, and the rooms of the package in twelve rows"


def svg() -> str:
    """The drawing, on a light card of its own that suits light and dark pages."""
    body, top = [], 24
    for title, stops in PATHS.items():
        body += _path(title, stops, top)
        top += 62
    body += _text(MARGIN, top, "The rooms: each imports only rooms of rows above its own")
    top += 12
    for number, names in enumerate(ROWS, 1):
        body += _row(number, names, top)
        top += STEP
    height = top + 2
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{round(WIDTH * 1.25)}" height="{round(height * 1.25)}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="#495057"/></marker></defs>'
    )
    card = (
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#ffffff" '
        'stroke="#ced4da"/>'
    )
    return "\n".join([head, f"<title>{ALT}</title>", arrow, card, *body, "</svg>", ""])


def _path(title: str, stops: Sequence[str], top: float) -> Iterator[str]:
    """A title, and below it boxes with arrows between them."""
    yield from _text(MARGIN, top, title)
    gap = 12
    width = (WIDTH - 2 * MARGIN - gap * (len(stops) - 1)) / len(stops)
    for place, name in enumerate(stops):
        left, y = MARGIN + place * (width + gap), top + 8
        yield from _box(left, y, width, name, COLOURS.get(name, DATA))
        if place:
            middle = y + BOX / 2
            yield (
                f'<line x1="{left - gap + 1:.1f}" y1="{middle}" x2="{left - 1:.1f}" y2="{middle}" '
                'stroke="#495057" stroke-width="1.5" marker-end="url(#arrow)"/>'
            )


def _row(number: int, names: Sequence[str], top: float) -> Iterator[str]:
    """The number of a row and its rooms, side by side."""
    yield from _text(MARGIN + LABEL - 10, top + 19, str(number), anchor="end", colour="#868e96")
    width = (WIDTH - 2 * MARGIN - LABEL - GAP * (len(names) - 1)) / len(names)
    for place, name in enumerate(names):
        left = MARGIN + LABEL + place * (width + GAP)
        yield from _box(left, top, width, shown(name), COLOURS.get(name, PLAIN))


def _box(
    left: float, top: float, width: float, text: str, colours: tuple[str, str]
) -> Iterator[str]:
    fill, border = colours
    yield (
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BOX}" rx="4" fill="{fill}" '
        f'stroke="{border}"/>'
    )
    yield from _text(left + width / 2, top + 18.5, text, anchor="middle")


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#212529"
) -> Iterator[str]:
    yield f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
