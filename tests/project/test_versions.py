"""What changed between the versions of dependencies that pyproject.toml allows."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from tests.support.command_line import Run
from tests.support.video_files import write_video


@pytest.mark.parametrize("owner", ["cv2", "cv2.utils.logging"])  # up to OpenCV 4.12; from 4.13
def test_opencv_is_silenced_in_every_version(
    owner: str,
    condinst: Run,
    bright_model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels: list[int] = []
    monkeypatch.delattr(cv2, "setLogLevel", raising=False)
    monkeypatch.delattr(cv2.utils, "logging", raising=False)
    if owner == "cv2":
        monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    else:
        functions = SimpleNamespace(setLogLevel=levels.append)
        monkeypatch.setattr(cv2.utils, "logging", functions, raising=False)
    for source in (photos, write_video(tmp_path / "square.mp4", frames=3)):
        status, _, err = condinst("predict", bright_model, source, "-o", tmp_path / "out")
        assert (status, err) == (0, "")
    assert set(levels) == {0}
