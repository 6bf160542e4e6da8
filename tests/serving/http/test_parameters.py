"""Parameters of requests: all kinds of text in all of them, twice, unknown, in query and form."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from condinst_infer.errors import ConfigError
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.options import classes_from_text
from condinst_infer.serving.http.failures import Rejection
from condinst_infer.serving.http.parameters import (
    FORM,
    PANOPTIC,
    PREDICT,
    QUERY,
    Given,
    given_in_query,
    read_parameters,
)
from tests.support.command_line import Run, assert_refused
from tests.support.http_server import GOOD, Running, serving
from tests.support.raw_http import FORM_TYPE, exchange, form, part, request
from tests.support.stuff_session import StuffSession

PATHS = {"/predict": PREDICT, "/panoptic": PANOPTIC}
WORDS = (
    "² ٣ １ 1_0 0x10 1e e5 nan inf -inf Infinity --1 +-1 1.2.3 . ½ Ⅷ % [] null - \u202e1 \ufeff1"
)
# of no kind of parameter
NOTHING = ["", " ", "\t\n", ",", " , ", "\0", "\r\nX: y", "1 0", *WORDS.split(" ")]
NOTHING += ["a" * 5000, "9" * 5000, "1" * 13, "0." + "1" * 5000]
# of the right kind, and mostly out of range
NUMBERS = ["-1", "-0", "+0.5", "1e999", "-1e999", "1e-999", "1e308", "0.5", "2", "0" * 50, "1e5"]
WHOLE = ["-1", "0", "-999999999999", "999999999999", "+3", "007", "1"]


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(Pipeline(StuffSession()), max_bytes=50_000) as running:
        yield running


def post(door: Running, path: str, name: str, value: bytes, place: str) -> tuple[int, str]:
    """Status and sentence of a request with one parameter."""
    if place == QUERY:
        sent = request(path=f"{path}?{quote(name)}={quote(value, safe='')}")
    else:
        body = form(part("image", GOOD), part(name, value))
        sent = request(body, f"Content-Type: {FORM_TYPE}", path=path)
    reply = exchange(door.address, sent)
    return reply.status, "" if reply.status == 200 else reply.text


@pytest.mark.parametrize("place", [QUERY, FORM])
@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, known in PATHS.items() for name in known]
)
def test_every_text_in_every_parameter_is_a_result_or_a_sentence(
    door: Running, path: str, name: str, place: str
) -> None:
    for text in [*NOTHING, *NUMBERS, *WHOLE, "json", "overlay", "person", "person,,2", "9" * 10]:
        status, sentence = post(door, path, name, text.encode(), place)
        assert status in (200, 400, 422), (text, status, sentence)
        if status != 200:
            words = "class" if name == "classes" else name
            assert words in sentence and "\n" not in sentence and len(sentence) < 300
        if text in NOTHING:
            assert status != 200, text
    for data in (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"0.5\xff"):
        assert post(door, path, name, data, place)[0] == 422


@pytest.mark.parametrize(
    ("path", "name", "text", "status"),
    [
        ("/predict", "score_threshold", "+0.5", 200),
        ("/predict", "score_threshold", " 5e-1\n", 200),
        ("/predict", "score_threshold", "1e999", 422),
        ("/predict", "max_detections", "999999999999", 200),
        ("/predict", "max_detections", "1.0", 422),
        ("/predict", "max_detections", "-1", 422),
        ("/predict", "classes", "0, person ,2", 200),
        ("/predict", "classes", "1_0", 422),
        ("/predict", "classes", "80", 422),
        ("/predict", "output", "JSON", 422),
        ("/panoptic", "instance_threshold", "0.5", 200),
        ("/panoptic", "overlap_threshold", "1e308", 422),
        ("/panoptic", "overlap_threshold", "-0.1", 422),
        ("/panoptic", "stuff_area_limit", "2147483647", 200),
        ("/panoptic", "stuff_area_limit", "999999999999", 422),
        ("/panoptic", "stuff_area_limit", "-1", 422),
    ],
)
def test_values_at_the_ends_of_their_ranges(
    door: Running, path: str, name: str, text: str, status: int
) -> None:
    assert post(door, path, name, text.encode(), QUERY)[0] == status


def test_a_parameter_is_given_once_and_known() -> None:
    for given, words in (
        ([("classes", "1", QUERY)] * 2, "classes is given twice; give it once."),
        ([("classes", "1", FORM)] * 2, "classes is given twice; give it once."),
        (
            [("classes", "1", QUERY), ("classes", "1", FORM)],
            "classes is given twice, in the query and in the form; give it once.",
        ),
        ([("clases", "1", FORM)], "no parameter 'clases' here; did you mean classes?"),
        (
            [("overlap_threshold", "1", QUERY)],
            "there is no parameter 'overlap_threshold' here; did you",
        ),
        ([("Classes", "1", QUERY)], "no parameter 'Classes' here; did you mean classes?"),
        ([("\x1b[31m" + 90 * "x", "", QUERY)], r"no parameter '\x1b[31mxxxxx"),
    ):
        with pytest.raises(Rejection) as refused:
            read_parameters(PREDICT, [Given(*one) for one in given])
        assert refused.value.status == 422 and words in str(refused.value)


def test_parameters_in_query_and_form_are_refused_before_the_model_runs(door: Running) -> None:
    body = form(part("image", GOOD), part("output", b"json"))
    before = door.metrics()["condinst_batch_images_sum"]
    for path, words in (
        ("/predict?output=json", "in the query and in the form"),
        ("/predict?output=json&output=json", "given twice"),
        ("/predict?score_treshold=0.5", "did you mean score_threshold?"),
        ("/predict?=", "no parameter ''"),
        ("/predict?classes", "classes"),
        ("/predict?%FF=1", "no parameter '\ufffd'"),
    ):
        sent = request(body, f"Content-Type: {FORM_TYPE}", path=path)
        reply = exchange(door.address, sent)
        assert reply.status == 422 and words in reply.text
    assert door.metrics()["condinst_batch_images_sum"] == before


def test_a_query_is_split_and_decoded() -> None:
    given = given_in_query(b"classes=a%2Cb+c&output=&x")
    assert given == [("classes", "a,b c", QUERY), ("output", "", QUERY), ("x", "", QUERY)]


def test_classes_of_the_command_line_are_read_alike(condinst: Run, demo_folder: object) -> None:
    assert classes_from_text("person, 2,²,1_0") == ["person", 2, "²", "1_0"]
    assert classes_from_text("9" * 9) == [10**9 - 1]
    for text in ("", " ", ",,"):
        with pytest.raises(ConfigError, match="classes is .*; give names or numbers"):
            classes_from_text(text)
    for text, words in (("9" * 5000, "has no class '9999"), ("", "classes is ''"), ("²", "'²'")):
        photo = f"{demo_folder}/nuclei.jpg"
        assert_refused(condinst("predict", "nuclei", photo, "-o", "o", f"--classes={text}"), words)


def test_the_interface_names_all_parameters(door: Running) -> None:
    import httpx

    paths = httpx.get(f"{door.url}/openapi.json").json()["paths"]
    for path, known in PATHS.items():
        assert list(paths[path]) == ["post"]
        named = paths[path]["post"]["parameters"]
        assert [one["name"] for one in named] == list(known)
        content = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert set(content["schema"]["properties"]) == {"image", *known}
