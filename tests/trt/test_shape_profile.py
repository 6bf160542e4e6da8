"""Which inputs an engine is built for, by what was asked and what the file takes."""

import pytest

from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.trt.shape_profile import ShapeProfile, shape_profile_for
from tests.support.bright_model import bright_config

DYNAMIC = Metadata(preset("condinst_rt_r50_shtw"))  # 512 x 736: a photograph becomes 512x683


@pytest.mark.parametrize(
    ("asked", "profile"),
    [
        ({}, ((1, 64, 64), (1, 512, 704), (1, 736, 736))),
        ({"max_shape": (4, 736, 736)}, ((1, 64, 64), (1, 512, 704), (4, 736, 736))),
        ({"max_shape": (2, 256, 256)}, ((1, 64, 64), (1, 256, 256), (2, 256, 256))),
        ({"min_shape": (2, 544, 544)}, ((2, 544, 544), (2, 544, 704), (2, 736, 736))),
        ({"opt_shape": (1, 1024, 2048)}, ((1, 64, 64), (1, 1024, 2048), (1, 1024, 2048))),
        (dict.fromkeys(("min_shape", "opt_shape", "max_shape"), (1, 64, 64)), ((1, 64, 64),) * 3),
        ({"max_shape": (1, 32, 32)}, ((1, 32, 32),) * 3),
    ],
)
def test_what_is_not_asked_for_follows_from_the_model(asked: dict, profile: tuple) -> None:
    given = {"min_shape": None, "opt_shape": None, "max_shape": None, **asked}
    assert shape_profile_for(DYNAMIC, **given) == ShapeProfile(*profile)


@pytest.mark.parametrize(
    ("static", "profile"),
    [
        ({"size": (64, 96), "batch": 2}, ((2, 64, 96),) * 3),
        ({"size": (64, 96)}, ((1, 64, 96),) * 3),
        ({"batch": 3}, ((3, 64, 64), (3, 96, 128), (3, 160, 160))),
    ],
)
def test_what_is_static_stays(static: dict, profile: tuple) -> None:
    metadata = Metadata(bright_config(), **static)
    assert shape_profile_for(metadata, None, None, None) == ShapeProfile(*profile)


def test_a_static_canvas_leaves_the_batch_free() -> None:
    metadata = Metadata(bright_config(), size=(64, 96))
    assert shape_profile_for(metadata, None, None, (4, 64, 96)).max == (4, 64, 96)


@pytest.mark.parametrize(
    ("static", "asked", "words"),
    [
        ({}, {"max_shape": (1, 100, 96)}, "--max is 1x100x96; .* multiples of 32"),
        ({}, {"max_shape": (4, 100, 100)}, "--max is 4x100x100; .* multiples of 32"),
        ({}, {"min_shape": (1, 96, 96), "max_shape": (1, 64, 64)}, "must rise from --min to --opt"),
        ({}, {"opt_shape": (1, 64, 64), "max_shape": (1, 32, 96)}, "must rise from --min to --opt"),
        ({"batch": 2}, {"max_shape": (4, 64, 64)}, "--max is 4x64x64; .* for 2xHxW only"),
        ({"size": (64, 96)}, {"min_shape": (1, 32, 32)}, "--min is 1x32x32; .* for Nx64x96 only"),
        ({"size": (64, 96), "batch": 2}, {"max_shape": (2, 64, 96)}, "the file is static, 2x64x96"),
    ],
)
def test_what_does_not_fit_is_refused(static: dict, asked: dict, words: str) -> None:
    given = {"min_shape": None, "opt_shape": None, "max_shape": None, **asked}
    with pytest.raises(ConfigError, match=words):
        shape_profile_for(Metadata(bright_config(), **static), **given)


def test_the_range_is_named() -> None:
    profile = ShapeProfile((1, 32, 32), (1, 64, 96), (2, 128, 128))
    assert str(profile) == "1x32x32 to 2x128x128, fastest at 1x64x96"
    assert str(ShapeProfile(*[(1, 64, 64)] * 3)) == "1x64x64 only"
    profile.check((2, 128, 32))
    for shape in ((3, 64, 64), (1, 160, 64), (1, 64, 31)):
        with pytest.raises(SessionError, match="takes 1x32x32 to 2x128x128"):
            profile.check(shape)
