"""Mutations of files, as strategies of hypothesis: of JSON by its values, of any file by its bytes.

The same strategies give the same files on every machine (`REPEATABLE`).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

REPEATABLE = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # what fails is listed, not made smaller
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
NASTY = (  # JSON texts that stand in the place of any value
    *("null", "true", "false", "0", "1", "-1", "2", "7", "64", "1000", "1000000", "1000000000"),
    *("2147483648", "9223372036854775807", "-9223372036854775808", "18446744073709551616"),
    *("9" * 5000, "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "0.5", "-0.5", "1e-300"),
    *("1e300", '""', '"a"', '"2"', '"None"', '"\\u0000"', '"\\ud800"', '"\\udcff"', '"é😀\\n"'),
    *('"../../x"', '"/"', '"fp32"', f'"{"x" * 100_000}"', "[]", "{}", "[[]]", "[null]", "[1]"),
    *("[1, 2]", "[2, 3, 4, 5]", '["a"]', '{"a": 1}', "[0.5]", "[true, true, true, true]"),
    *("[1000000000]", "[1000000000, 1000000000]", "[[[1e300]]]", "[-1]", "[" * 100_000),
    *("[" * 40 + "]" * 40, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900),
    *(f"[{'0,' * 10_000}0]", "{" * 5000, "[1, [2, 3], {}]"),
)
HUGE = (f'"{"x" * 10_000_000}"', f"[{'0,' * 1_000_000}0]", "[" * 1_000_000)

_WALK = st.lists(st.integers(0, 40), min_size=1, max_size=7)
_OPERATIONS = st.sampled_from(["put", "put", "put", "put", "delete", "double", "nest", "move"])


def changed_json(data: Any, *, most: int = 3, nasty: Sequence[str] = NASTY) -> st.SearchStrategy:
    """JSON texts: `data` with up to `most` of its values replaced, left out, doubled or nested."""
    change = st.tuples(_OPERATIONS, _WALK, st.integers(0, len(nasty) - 1))

    def text(changes: list[tuple[str, list[int], int]]) -> str:
        tree = [json.loads(json.dumps(data))]
        for operation, walk, number in changes:
            _change(tree, operation, walk, f"@{number}@")
        written = json.dumps(tree[0])
        for number in sorted({number for _, _, number in changes}):
            written = written.replace(f'"@{number}@"', nasty[number])
        return written

    return st.lists(change, min_size=1, max_size=most).map(text)


def put_everywhere(data: Any, *, nasty: Sequence[str] = NASTY) -> Iterator[str]:
    """`data` with one value replaced by one of `nasty`: each by each, of lists the first two."""
    for walk in _walks(data):
        for new in nasty:
            tree = [json.loads(json.dumps(data))]
            parent, key = tree, 0
            for step in walk:
                parent, key = parent[key], step
            parent[key] = "@@"
            yield json.dumps(tree[0]).replace('"@@"', new)


def _walks(data: Any) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each value of `data`."""
    yield ()
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else list(enumerate(data))[:2]
        for key, value in items:
            for rest in _walks(value):
                yield (key, *rest)


def _change(tree: list[Any], operation: str, walk: list[int], new: Any) -> None:
    """Change the value that `walk` leads to in `tree`, or the one above it where it ends early."""
    parent, key = tree, 0
    for step in walk:
        node = parent[key]
        if not isinstance(node, dict | list) or not node:
            break
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        parent, key = node, keys[step % len(keys)]
    if operation == "delete" and parent is not tree:
        del parent[key]
    elif operation == "double" and isinstance(parent, list) and parent is not tree:
        parent.insert(key, parent[key])
    elif operation == "double" and isinstance(parent, dict):
        parent[f"{key}2"] = parent[key]
    elif operation == "nest":
        parent[key] = [parent[key]]
    elif operation == "move" and isinstance(parent, dict):
        keys = list(parent)
        parent[key] = parent[keys[(keys.index(key) + 1) % len(keys)]]
    else:
        parent[key] = new


def damaged_bytes(data: bytes, *, most: int = 3) -> st.SearchStrategy:
    """`data` with up to `most` places flipped, cut off, left out, doubled or with bytes put in."""
    change = st.tuples(
        st.sampled_from(["flip", "flip", "cut", "put", "drop", "double"]),
        st.integers(0, max(0, len(data) - 1)),
        st.binary(min_size=1, max_size=9),
    )

    def damaged(changes: list[tuple[str, int, bytes]]) -> bytes:
        found = data
        for operation, place, piece in changes:
            head, tail = found[:place], found[place:]
            if operation == "cut":
                found = head
            elif operation == "flip":
                found = head + bytes([tail[0] ^ (piece[0] or 1)]) + tail[1:] if tail else head
            elif operation == "put":
                found = head + piece + tail
            elif operation == "drop":
                found = head + tail[len(piece) :]
            else:
                found = head + tail[:99] + tail
        return found

    return st.lists(change, min_size=1, max_size=most).map(damaged)
