"""JSON from outside: what it may not hold is one sentence."""

import json

import pytest

from condinst_infer.errors import CondInstError, InputError, ModelFileError, shorten
from condinst_infer.system.json_text import MAX_DEPTH, parse_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "FILE is not JSON: Expecting value"),
        ("[1", "FILE is not JSON"),
        ("[" * 100_000, f"FILE is nested deeper than {MAX_DEPTH}"),
        ("[" * 100_000 + "]" * 100_000, f"FILE is nested deeper than {MAX_DEPTH}"),
        ("[" * 51 + "]" * 51, f"FILE is nested deeper than {MAX_DEPTH}"),
        ('{"a":' * 51 + "1" + "}" * 51, f"FILE is nested deeper than {MAX_DEPTH}"),
        ('{"a": [1, {"b": 1e400}]}', "FILE: a[1].b is inf; it must be a finite number"),
        ('{"a": -1e+400}', "FILE: a is -inf"),
        (f"[{'1' * 400}.5]", "FILE: [0] is inf"),
        (f'{{"a": {"9" * 5000}}}', "FILE: a is inf"),
        (f'{{"a": -{"9" * 5000}}}', "FILE: a is -inf"),
        ("[9223372036854775808]", "FILE: [0] is 9223372036854775808; it must be a number of 64"),
        ("[NaN]", "FILE: [0] is nan"),
        ('{"a": Infinity}', "FILE: a is inf"),
        ("-Infinity", "FILE is -inf"),
        ('["\\ud800"]', "FILE: [0] is '\\ud800', which has half a character"),
        ('{"\\uDFFF": 1}', "FILE: the key '\\udfff' has half a character"),
        ('["\ud800"]', "FILE is not UTF-8 text"),
        (b"\xff\xfe[]", "FILE is not UTF-8 text"),
        (b'["\xe9"]', "FILE is not UTF-8 text"),
        (f'{{"{"x" * 10_000}": NaN}}', "xxx is nan"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_what_json_may_not_hold_is_one_sentence(text: str | bytes, words: str) -> None:
    with pytest.raises(ModelFileError) as error:
        parse_json(text, "FILE", ModelFileError)
    message = str(error.value)
    assert words in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        ("[" * 50 + "]" * 50, json.loads("[" * 50 + "]" * 50)),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ("[9223372036854775807, -9223372036854775808]", [2**63 - 1, -(2**63)]),
        ("[0.12345678901234567890123, 1e300]", [0.12345678901234567890123, 1e300]),
        ('["\\ud83d\\ude00", "\\udcff"]', ["😀", "\udcff"]),  # a file's name that is no UTF-8
        (f'"{"[" * 100_000}"', "[" * 100_000),
        ('["NaN", "1e400"]', ["NaN", "1e400"]),
    ],
    ids=lambda value: str(value)[:25],
)
def test_other_json_is_read_as_it_is(text: str | bytes, value: object) -> None:
    assert parse_json(text, "FILE", InputError) == value


def test_values_in_messages_have_an_end() -> None:
    assert shorten((3, 5)) == "(3, 5)" and shorten("a") == "'a'"
    for value in ("x" * 10**7, list(range(10**5)), {"a": [[[[["b"] * 99]]]]}, 10**300):
        assert len(shorten(value)) < 150
    assert str(CondInstError("short")) == "short"
    assert len(str(CondInstError("x" * 10**6))) < 2000
