"""The shifts of --jitter: small, the same for the same value, and in every runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch

from condinst_infer import checkpoint
from condinst_infer.contract.session import Session
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.verification.intermediates import (
    IntermediateSource,
    OnnxIntermediates,
    TorchIntermediates,
)
from tests.support import jitter

Patch = pytest.MonkeyPatch
DTYPES = [np.float16, np.float32, np.float64]


def numbers(dtype: type = np.float32) -> np.ndarray:
    """Values in (0, 1) without order, [40, 50]."""
    return np.random.default_rng(0).uniform(0.01, 0.99, (40, 50)).astype(dtype)


def feeds() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    return {"images": images, "image_sizes": np.array([[64, 96], [50, 80]], np.int32)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_hash_is_a_function_of_the_value_and_spreads_it(dtype: type) -> None:
    values = numbers(dtype)
    shifts = jitter.unit_hash(values)
    assert shifts.shape == values.shape and np.abs(shifts).max() <= 1
    np.testing.assert_array_equal(shifts.T[::-1], jitter.unit_hash(values.T[::-1]))
    np.testing.assert_array_equal(shifts[3, 4], jitter.unit_hash(values[3, 4]))
    assert abs(shifts.mean()) < 0.1 and abs(shifts.std() - 3**-0.5) < 0.05  # uniform
    neighbours = jitter.unit_hash(np.nextafter(values, dtype(1)))
    assert abs(np.corrcoef(shifts.ravel(), neighbours.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["boxes", "candidate_boxes", "scores", "masks", "mask_features"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_almost_every_value_moves_and_none_too_far(name: str, scale: float) -> None:
    values = numbers() * (200 if name.endswith(("boxes", "features")) else 1)
    found = jitter.moved(name, values, scale)
    amount = scale * jitter.AMOUNTS.get(name, 1e-6 * values)
    assert found.dtype == values.dtype and found.shape == values.shape
    apart = np.abs(found.astype(np.float64) - values)
    assert (apart <= amount + np.spacing(values)).all()  # and what float32 rounds
    assert (found != values).mean() > 0.9 and apart.max() > 0.8 * np.max(amount)
    np.testing.assert_array_equal(found, jitter.moved(name, values.copy(), scale))
    twice = np.concatenate([values, values[::-1]])
    np.testing.assert_array_equal(jitter.moved(name, twice, scale), [*found, *found[::-1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_measurement_stays(dtype: type) -> None:
    values = np.array([[0, -1, -0.0, np.nan, np.inf, -np.inf]], dtype)
    for name in ("boxes", "scores", "masks", "semantic"):
        np.testing.assert_array_equal(jitter.moved(name, values), values)
    whole = np.arange(5, dtype=np.int32)
    assert jitter.moved("labels", whole) is whole


def test_a_single_operation_is_moved_by_its_size_alone() -> None:
    values = numbers()
    masks = jitter.moved("masks", values, network=False)
    np.testing.assert_array_equal(masks, jitter.moved("mask_features", values))
    assert (np.abs(masks - values) <= 1e-6 * values + np.spacing(values)).all()
    assert jitter.moved("kept_scores", values) is values


def test_probabilities_stay_in_their_range_and_the_best_first() -> None:
    near = np.concatenate([np.full(500, 1), 1 - np.linspace(0, 1e-6, 500)]).astype(np.float32)
    for name in ("scores", "masks", "candidate_scores"):
        found = jitter.moved(name, np.stack([near, 1 - near]), scale=100)
        assert found.min() >= 0 and found.max() <= 1
    ranked = np.linspace(0.5, 0.4999, 1000, dtype=np.float32)[None]
    assert (np.diff(jitter.moved("candidate_scores", ranked)) > 0).any()
    assert (np.diff(jitter.moved("scores", ranked)) <= 0).all()


def sessions(checkpoint_path: Path, onnx_path: Path) -> list[Session | IntermediateSource]:
    """Every runtime at hand, of one network."""
    model = checkpoint.load(checkpoint_path)
    found: list[Session | IntermediateSource] = [TorchSession(model), TorchIntermediates(model)]
    found += [OrtSession(onnx_path, threads=1), OnnxIntermediates(onnx_path, 1)]
    try:
        from condinst_infer.runtimes.openvino import OvSession

        found.append(OvSession(onnx_path, threads=1))
    except ImportError:
        pass
    return found


def test_every_runtime_is_moved_once(
    nano_checkpoint: Path, nano_onnx: Path, monkeypatch: Patch
) -> None:
    for session in sessions(nano_checkpoint, nano_onnx):
        with jitter.suspended():
            plain = session.run(feeds())
        with monkeypatch.context() as patch:
            jitter.apply_jitter(patch, 5.0)
            found = session.run(feeds())
            again = session.run(feeds())
        own = isinstance(session, OnnxIntermediates)
        for name, values in plain.items():
            stays = own and name not in jitter.BEFORE_CANDIDATES
            wanted = values if stays else jitter.moved(name, values, 5.0)
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)
            np.testing.assert_array_equal(found[name], again[name])
            floats = values.dtype.kind == "f" and not stays
            assert (found[name] != values).any() == floats, name


def test_the_network_is_moved_where_it_only_computes(
    nano_checkpoint: Path, monkeypatch: Patch
) -> None:
    model = checkpoint.load(nano_checkpoint)
    given = [torch.from_numpy(array) for array in feeds().values()]
    with jitter.suspended():
        expected = model.heads(*given)
    jitter.apply_jitter(monkeypatch, 5.0)
    assert torch.equal(model.heads(*given).mask_features, expected.mask_features)  # may be trained
    with torch.inference_mode():
        found = model.heads(*given)
    for ours, theirs in zip(found.class_logits, expected.class_logits, strict=True):
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=6e-6, atol=0)
    assert type(found) is type(expected) and found.semantic is None


def test_the_level_of_optimisation_is_basic(nano_onnx: Path, monkeypatch: Patch) -> None:
    import onnxruntime

    jitter.apply_ort_basic(monkeypatch)
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for options in ((), (onnxruntime.SessionOptions(),)):
        session = onnxruntime.InferenceSession(nano_onnx, *options)
        assert session.get_session_options().graph_optimization_level == basic
    assert OrtSession(nano_onnx)._session.get_session_options().graph_optimization_level == basic
