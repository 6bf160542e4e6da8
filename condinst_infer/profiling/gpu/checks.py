"""Checks of every kernel against the torch or numpy twin, at many sizes."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condinst_infer import ops
from condinst_infer.config.model import mask_layers
from condinst_infer.cuda import kernels
from condinst_infer.cuda.download import crops_from_bits
from condinst_infer.cuda.driver import Stream
from condinst_infer.processing import paste
from condinst_infer.processing.geometry import canvas_size
from condinst_infer.profiling.gpu.kernel_costs import PAPER_HEAD
from condinst_infer.profiling.gpu.scenes import dense, mask_scene, tensor_from

NEAR_HALF = 1e-5  # where rounding may decide whether a pixel is foreground


class Check(NamedTuple):
    """Difference of a kernel from its twin in one case, and the allowed difference."""

    kernel: str
    case: str
    difference: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit  # also refuses NaN


def instance_checks(stream: Stream, small: bool) -> Iterator[Check]:
    """Check all kernels but those of the panoptic merge; `small` sizes for the CPU."""
    yield from nms_checks(stream, small)
    yield from mask_nms_checks(stream, small)
    yield from select_checks(stream, small)
    yield from mask_head_checks(stream, small)
    yield from preprocess_checks(stream, small)
    yield from paste_checks(stream, small)


def candidates(n: int, runs: int, t: int, classes: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """boxes [N, M, 4], scores [N, M] falling within each run, labels [N, M]; some slots empty."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 700, (n, runs * t, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(60, corner.shape)], 2)
    scores = rng.uniform(0.01, 1, (n, runs, t)).round(2)  # many ties
    scores[:, :, t - t // 5 :] = -1
    scores = -np.sort(-scores, 2).reshape(n, runs * t)
    labels = rng.integers(0, classes, scores.shape)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


def nms_checks(stream: Stream, small: bool) -> Iterator[Check]:
    cases = [(1, 1, 1, 1, 1), (2, 3, 37, 20, 2)]
    cases += [] if small else [(1, 5, 1000, 100, 80), (4, 5, 1000, 512, 1), (3, 3, 1000, 100, 3)]
    for n, runs, t, k, classes in cases:
        arrays = [stream.array(a) for a in candidates(n, runs, t, classes)]
        keep, count = stream.empty((n, k), np.int32), stream.empty((n,), np.int32)
        settings = {"runs": runs, "max_detections": k, "iou_threshold": 0.6}
        stream.launch(kernels.class_nms(n, runs * t, **settings), arrays, [keep, count])
        stream.synchronize()
        expected = ops.class_nms(*map(tensor_from, arrays), **settings)
        wrong = sum(
            (tensor_from(a) != b).sum().item() for a, b in zip((keep, count), expected, strict=True)
        )
        case = f"{n} images, {runs} runs of {t} to {k}, {classes} classes"
        yield Check("class_nms", case, wrong, 0)


def mask_nms_checks(stream: Stream, small: bool) -> Iterator[Check]:
    rng = np.random.default_rng(3)
    cases = [(2, 20, 5, (7, 9))]
    cases += [] if small else [(1, 300, 100, (64, 88)), (3, 512, 100, (100, 168))]
    for (n, c, k, size), kind in product(cases, kernels.MASK_NMS):
        edges = rng.integers(0, [*size, *size], (n, c, 4))[..., None, None]
        rows, columns = np.ogrid[: size[0], : size[1]]
        inside = (np.abs(rows - edges[:, :, 0]) < 1 + edges[:, :, 2] // 2) & (
            np.abs(columns - edges[:, :, 1]) < 1 + edges[:, :, 3] // 2
        )
        falling = -np.sort(-rng.uniform(0.01, 1, (n, c)).round(2), 1)
        masks = stream.array(np.where(inside, 0.51, 0.5).astype(np.float16))
        scores = stream.array(falling.astype(np.float32))
        labels = stream.array(rng.integers(0, 2, (n, c), dtype=np.int32))
        settings = {"kind": kind, "iou_threshold": 0.5, "score_threshold": 0.05}
        found = run_mask_nms(stream, masks, scores, labels, k, settings)
        given = map(tensor_from, (masks, scores, labels))
        expected = ops.mask_nms(*given, **settings, max_detections=k)
        stream.synchronize()
        wrong = sum(int((tensor_from(a) != b).sum()) for a, b in zip(found, expected, strict=True))
        yield Check("mask_nms", f"{kind}, {n} images, {c} of {size} to {k}", wrong, 0)


def run_mask_nms(
    stream: Stream, masks: Any, scores: Any, labels: Any, k: int, settings: dict[str, Any]
) -> list[Any]:
    """keep, scores and count of the kernels."""
    (n, c), cells = masks.shape[:2], masks.shape[2] * masks.shape[3]
    bits = stream.empty((n, c, -(-cells // 32)), np.uint32)
    areas, ious = stream.empty((n, c), np.int32), stream.empty((n, c, c), np.float32)
    found = [stream.empty((n, k), np.int32), stream.empty((n, k), np.float32)]
    found.append(stream.empty((n,), np.int32))
    stream.launch(kernels.mask_bits(n, c, cells, dtype=masks.dtype), [masks], [bits, areas])
    stream.launch(kernels.mask_ious(n, c, bits.shape[2]), [bits, areas, labels], [ious])
    order = stream.array(np.tile(np.arange(c, dtype=np.int32), (n, 1)))
    launch = kernels.mask_nms(n, c, k=k, **settings, score_root=False)
    stream.launch(launch, [ious, scores, areas, order], found)
    return found


def select_checks(stream: Stream, small: bool) -> Iterator[Check]:
    shapes, strides, interest = [(5, 7), (3, 4)], (8, 16), (64, 128)
    a, m, p = sum(h * w for h, w in shapes), 40, 169
    rng = np.random.default_rng(1)
    for dtype, (n, k) in ((np.float32, (3, 10)), (np.float16, (2, 10 if small else 100))):
        boxes, scores, labels = candidates(n, 2, m // 2, 5)
        places = rng.integers(0, a, (n, m)).astype(np.int32)
        params = rng.normal(size=(n, p, a)).astype(dtype)
        count = rng.integers(0, min(k, m) + 1, n).astype(np.int32)
        keep = np.full((n, k), -1, np.int32)
        for row, used in zip(keep, count, strict=True):
            row[:used] = rng.permutation(m)[:used]
        levels = np.array([(0, 7, 8, 64), (35, 4, 16, 128)], np.int32)
        inputs = [
            stream.array(x) for x in (keep, count, boxes, scores, labels, places, params, levels)
        ]
        outputs = [
            stream.empty((n, k, *rest), kind)
            for rest, kind in (
                ((4,), np.float32), ((), np.float32), ((), np.int32), ((p,), dtype),
                ((2,), np.float32), ((), np.float32),
            )
        ]  # fmt: skip
        sizes: dict[str, Any] = {"k": k, "m": m, "p": p, "a": a, "levels": 2}
        launch = kernels.select(n, **sizes, score_root=True, dtype=np.dtype(dtype))
        stream.launch(launch, inputs, outputs)
        index = torch.from_numpy(keep).clamp(min=0).long()
        real = torch.arange(k) < torch.from_numpy(count)[:, None]
        at = torch.from_numpy(places).gather(1, index)
        centres, sizes_ = ops.places_from_locations(at, shapes, strides, interest)
        rows = torch.from_numpy(params).gather(2, at.long()[:, None].expand(-1, p, -1))
        expected = [
            torch.from_numpy(boxes).gather(1, index[:, :, None].expand(-1, -1, 4)),
            torch.from_numpy(scores).gather(1, index).clamp(min=0).sqrt(),
            torch.from_numpy(labels).gather(1, index),
            rows.transpose(1, 2), centres, sizes_,
        ]  # fmt: skip
        worst = 0.0
        for i, (array, twin) in enumerate(zip(outputs, expected, strict=True)):
            mask = real.reshape(*real.shape, *[1] * (twin.ndim - 2))
            twin = torch.where(mask, twin.float(), -1.0 if i == 2 else 0.0)
            found = torch.from_numpy(stream.numpy(array)).float()
            worst = max(worst, (found - twin).abs().max().item())
        # the root may be rounded otherwise in its last bit
        yield Check("select", f"{n} images, {k} slots, {np.dtype(dtype)}", worst, 1e-7)


def head_inputs(n: int, k: int, h: int, w: int, seed: int = 0, **head: Any) -> dict[str, Tensor]:
    """features, params, centres, sizes and count, on the CPU in float32."""
    g = torch.Generator().manual_seed(seed)
    params = sum(o * i + o for o, i in mask_layers(**head))
    where = torch.rand((n, k, 2), generator=g) * torch.tensor([8.0 * w, 8.0 * h])
    return {
        "features": torch.randn((n, head["channels"], h, w), generator=g),
        "params": torch.randn((n, k, params), generator=g) * 0.5,
        "centres": where,
        "sizes": 2.0 ** torch.randint(6, 11, (n, k), generator=g),
        "count": (torch.arange(n) + k).remainder(k + 1).int(),  # K, then 0, 1, ...
    }


def mask_head_checks(stream: Stream, small: bool) -> Iterator[Check]:
    heads: list[dict[str, Any]] = [PAPER_HEAD | change for change in (
        {}, {"depth": 1}, {"depth": 4, "width": 16, "channels": 16}, {"coordinates": "absolute"},
        {"coordinates": "none", "width": 3, "channels": 5}, {"use_features": False, "depth": 2},
    )]  # fmt: skip
    cases = [(heads[i], (1, 3, 9, 33), 1 << i % 3) for i in range(len(heads))]
    if not small:
        cases += [(head, (3, 7, 37, 51), 2) for head in heads]
        cases += [(PAPER_HEAD, (1, 100, 64, 88), 2), (PAPER_HEAD, (2, 100, 100, 168), 2)]
    for head, (n, k, h, w), factor in cases:
        settings = {**head, "stride": 8, "factor": factor}
        for dtype in (np.float32, np.float16):
            made = head_inputs(n, k, h, w, **head)
            kind = torch.from_numpy(np.zeros(1, dtype)).dtype
            made |= {name: made[name].to(kind) for name in ("features", "params")}
            arrays = [stream.array(value.numpy()) for value in made.values()]
            out = stream.empty((n, k, factor * h, factor * w), dtype)
            launch = kernels.dynamic_mask_head(n, k, h, w, **settings, dtype=np.dtype(dtype))
            stream.launch(launch, arrays, [out])
            stream.synchronize()
            twin = [tensor_from(array) for array in arrays]
            exact = ops.dynamic_mask_head(twin[0].float(), *twin[1:], **settings)
            apart = (tensor_from(out).float() - exact).abs().max().item()
            # half a unit of float16 at 1 is 2.4e-4: no float16 probability can be nearer
            limit = 1e-5 if dtype == np.float32 else 2.5e-4
            case = f"{n}x{k}x{h}x{w} to x{factor}, {head}, {np.dtype(dtype)}"
            yield Check("dynamic_mask_head", case, apart, limit)


def preprocess_checks(stream: Stream, small: bool) -> Iterator[Check]:
    cases = [((48, 64), (20, 27)), ((20, 30), (41, 33)), ((31, 17), (31, 17)), ((7, 90), (1, 1))]
    cases += [] if small else [((1080, 1920), (414, 736)), ((480, 640), (800, 1067))]
    rng = np.random.default_rng(2)
    for size, net_size in cases:
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        canvas = canvas_size(net_size, 32)
        out = stream.empty((*canvas, 3), np.uint8)
        launch = kernels.preprocess(pitch=3 * size[1], size=size, net_size=net_size, canvas=canvas)
        stream.launch(launch, [stream.array(image)], [out])
        found = stream.numpy(out).astype(int)
        expected = np.zeros(found.shape, int)
        resized = Image.fromarray(image).resize(
            (net_size[1], net_size[0]), Image.Resampling.BILINEAR
        )
        expected[: net_size[0], : net_size[1]] = np.asarray(resized)
        case = f"{size[0]}x{size[1]} to {net_size[0]}x{net_size[1]}"
        yield Check("preprocess", case, float(np.abs(found - expected).max()), 1)


def paste_checks(stream: Stream, small: bool) -> Iterator[Check]:
    cases = [(3, (9, 11), 4, (33, 44), (50, 61)), (2, (16, 16), 2, (30, 25), (11, 13))]
    if not small:
        cases.append((100, (128, 184), 4, (512, 731), (1080, 1542)))
        cases.append((100, (200, 272), 4, (800, 1067), (480, 640)))
    for k, shape, stride, net_size, image_size in cases:
        for dtype in (np.float32, np.float16):
            masks = mask_scene(k, shape, image_size).astype(dtype)
            found = run_paste(stream, masks, stride, net_size, image_size)
            expected = paste.paste(masks, stride=stride, net_size=net_size, image_size=image_size)
            rows, columns = (
                paste._axis(cells, stride, net, side).weights
                for cells, net, side in zip(shape, net_size, image_size, strict=True)
            )
            wrong = 0
            differs = dense(found, image_size) != dense(expected, image_size)
            for mask, apart in zip(masks, differs, strict=True):
                if apart.any():
                    p = rows @ mask.astype(np.float32) @ columns.T
                    wrong += int((apart & (np.abs(p - 0.5) > NEAR_HALF)).sum())
            case = f"{k} masks {shape} at {stride} to {image_size}, {np.dtype(dtype)}"
            yield Check("paste", case, wrong, 0)


def run_paste(
    stream: Stream, masks: np.ndarray, stride: int, net_size: Any, image_size: Any
) -> list:
    """Crops of `masks` by the kernels."""
    k, shape, kind = len(masks), masks.shape[1:], masks.dtype
    capacity = k * image_size[0] * -(-image_size[1] // 32)
    array, count = stream.array(masks), stream.array(np.array([k], np.int32))
    crops, used = stream.empty((k, kernels.CROP_FIELDS), np.int32), stream.empty((1,), np.int32)
    bits = stream.empty((capacity,), np.uint32)
    stream.fill(used, 0)
    sizes: dict[str, Any] = {
        "k": k, "shape": shape, "stride": stride, "net_size": net_size, "image_size": image_size,
        "dtype": kind,
    }  # fmt: skip
    stream.launch(kernels.mask_boxes(**sizes, capacity=capacity), [array, count], [crops, used])
    stream.launch(kernels.paste(**sizes), [array, crops], [bits])
    return crops_from_bits(stream.numpy(crops), stream.numpy(bits)[: stream.numpy(used)[0]])
