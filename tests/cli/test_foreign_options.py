"""Options that other tools have are answered with ours."""

import re

import pytest

from condinst_infer.cli.foreign_options import FOREIGN, advice
from condinst_infer.cli.main import VERBS
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from tests.support.command_line import Run, assert_refused

PAIRS = [(verb, option) for option, verbs in FOREIGN.items() for verb in verbs]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("predict", "m.onnx", "a.jpg", "-o", "out", "--conf", "0.3"),
            "condinst: predict has no --conf; its name here is --score-threshold.",
        ),
        (
            ("predict", "--weights=m.onnx", "--source", "a.jpg", "-o", "out"),
            "condinst: predict has no --weights; its name here is MODEL, which stands without an "
            "option: condinst predict MODEL.",
        ),
        (
            ("train", "condinst_r50", "--epochs", "12"),
            "condinst: train has no --epochs; its name here is --iterations, a number of "
            "optimizer steps.",
        ),
    ],
)
def test_the_answer_is_one_sentence(condinst: Run, words: tuple, sentence: str) -> None:
    assert condinst(*words) == (2, "", sentence + "\n")


@pytest.mark.parametrize(("verb", "option"), PAIRS)
def test_no_verb_has_the_option_and_every_verb_has_ours(
    condinst: Run, verb: str, option: str
) -> None:
    assert verb in VERBS
    _, text, _ = condinst(verb, "--help")
    has = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
    assert option not in has
    assert_refused(condinst(verb, option, "7"), f"{verb} has no {option}; ")
    reply = advice([verb, f"{option}=7"]) or ""
    ours, _, elsewhere = reply.partition("; ")[2].partition("condinst ")
    if not elsewhere.startswith(verb):
        _, text, _ = condinst(elsewhere.split()[0], "--help") if elsewhere else (0, "", "")
        has_there = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
        assert set(re.findall(r"--[a-z][a-z-]*", elsewhere)) <= has_there
    assert set(re.findall(r"--[a-z][a-z-]*", ours)) <= has


def test_the_fields_that_answers_name_exist() -> None:
    text = " ".join(reply for verbs in FOREIGN.values() for reply in verbs.values())
    fields = set(re.findall(r"--set (\w+)=", text))
    assert fields == {"nms_iou", "short_side", "long_side"}
    override(preset("condinst_r50"), nms_iou=0.6, short_side=640, long_side=1024)


def test_other_mistakes_are_told_as_ever(condinst: Run) -> None:
    assert_refused(condinst("info", "m.onnx", "--bogus"), "unrecognized arguments: --bogus")
    assert_refused(condinst("info", "m.onnx", "--conf", "1"), "unrecognized arguments: --conf")
    assert_refused(condinst("--conf", "1"), "invalid choice")
    assert advice(["predict", "m.onnx", "--", "--conf"]) is None
    assert advice(["predict", "m.onnx", "a.jpg", "-o", "out"]) is None
    assert advice([]) is None
