"""The network in PyTorch computes what the official implementations compute.

Tolerances are those the reference numbers come with: twenty times what float64 would move them.
"""

import numpy as np
import pytest
import torch

from condinst_infer.ops import (
    aligned_bilinear,
    class_nms,
    mask_logits,
    mask_logits_by_grouped_conv,
    select_candidates,
)
from tests.support import goldens
from tests.support.goldens import SETS

CASES = [(name, case) for name in SETS for case in ("img0", "img1")]


def tensors(feeds: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(feeds["images"]), torch.from_numpy(feeds["image_sizes"])


def run(name: str, case: str, *, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Graph outputs of a case, from raw heads whose class logits are raised by `shift`."""
    model, (images, sizes) = goldens.model(name), tensors(goldens.feeds(name, case))
    with torch.inference_mode():
        raw = model.heads(images, sizes)
        raw = raw._replace(class_logits=tuple(c + shift for c in raw.class_logits))
        outputs = model.finish(raw, sizes) if shift else model(images, sizes)
    return {key: value.numpy() for key, value in outputs.items()}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_input_backbone_and_pyramid(name: str, case: str) -> None:
    model, golden = goldens.model(name), goldens.arrays(name)
    with torch.inference_mode():
        x = model.normalize(*tensors(goldens.feeds(name, case)))
        maps = model.backbone(x)
        pyramid = model.neck(maps)
    stage = "bottomup_level" if "DLA" in name else "bottomup_res"
    stages = {f"fpn_p{level}": map_ for level, map_ in pyramid.items()}
    stages |= {f"{stage}{level}": map_ for level, map_ in maps.items()}
    checked = 0
    for key, tensor in stages.items():
        if f"{case}_{key}_idx" in golden:
            sample = tensor.flatten().numpy()[golden[f"{case}_{key}_idx"]]
            np.testing.assert_allclose(sample, golden[f"{case}_{key}_val"], rtol=1e-3, atol=1e-3)
            checked += 1
    assert checked >= len(pyramid) + 3
    sample = x.flatten().numpy()[golden[f"{case}_input_idx"]]
    np.testing.assert_allclose(sample, golden[f"{case}_input_val"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_heads_and_mask_features(name: str, case: str) -> None:
    golden = goldens.arrays(name)
    with torch.inference_mode():
        raw = goldens.model(name).heads(*tensors(goldens.feeds(name, case)))
    pairs = {"mask_feats": raw.mask_features}
    if "C_" in name or "D_" in name:
        assert raw.semantic_logits is not None
        pairs["sem_logits"] = raw.semantic_logits
    for level, key in enumerate(goldens.facts(name)["levels"]):
        pairs[f"{key}_cls"] = raw.class_logits[level]
        pairs[f"{key}_reg"] = raw.regression[level]
        pairs[f"{key}_ctr"] = raw.centreness[level]
        pairs[f"{key}_ctl"] = raw.params[level]
    for key, tensor in pairs.items():
        expected, got = golden[f"{case}_{key}"], tensor[0].numpy()
        if expected.ndim == 1:
            got = got.reshape(-1)[::17]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=5e-4, err_msg=key)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_detections_and_final_masks(name: str, case: str) -> None:
    outputs = run(name, case)
    goldens.check_detections(name, case, outputs, 0)
    goldens.check_final(name, case, outputs, 0)


@pytest.mark.parametrize("name", SETS)
def test_a_batch_of_two(name: str) -> None:
    outputs = run(name, "batch")
    for slot in range(2):
        goldens.check_detections(name, f"batch{slot}", outputs, slot)
        goldens.check_final(name, f"batch{slot}", outputs, slot)


@pytest.mark.parametrize("name", ["A_R50_1x", "M_mmdet_R50"])
@pytest.mark.parametrize("i", [0, 1])
def test_more_candidates_than_the_level_limit(name: str, i: int) -> None:
    outputs = run(name, f"img{i}", shift=goldens.DENSE_SHIFT)
    goldens.check_detections(name, f"dense{i}", outputs, 0)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_mask_logits_of_the_official_detections(name: str, case: str) -> None:
    model, golden = goldens.model(name), goldens.arrays(name)
    images, sizes = tensors(goldens.feeds(name, case))
    with torch.inference_mode():
        raw = model.heads(images, sizes)
        levels = torch.from_numpy(golden[f"{case}_det_levels"]).long()
        centres = torch.from_numpy(golden[f"{case}_det_locations"])
        rows = []
        for level, (x, y) in zip(levels.tolist(), centres.tolist(), strict=True):
            stride = model.config.strides[level]
            rows.append(raw.params[level][0, :, int(y // stride), int(x // stride)])
        interest = torch.tensor(model.config.heads.sizes_of_interest)[levels].float()
        logits = mask_logits(
            raw.mask_features, torch.stack(rows)[None], centres[None], interest[None], stride=8
        )
    np.testing.assert_allclose(
        logits[0].numpy(), golden[f"{case}_det_mask_logits"], rtol=1e-3, atol=1e-2
    )


UNIT = goldens.arrays("unit")


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_aligned_bilinear(factor: int) -> None:
    got = aligned_bilinear(torch.from_numpy(UNIT["ab_x"]), factor)
    np.testing.assert_allclose(got.numpy(), UNIT[f"ab_y{factor}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logits_of", [mask_logits, mask_logits_by_grouped_conv])
@pytest.mark.parametrize("prefix", ["mh", "mh_norel", "mh2"])
def test_mask_heads(logits_of: object, prefix: str) -> None:
    family = "mh2" if prefix == "mh2" else "mh"
    features = torch.from_numpy(UNIT[f"{family}_feats"])
    params = torch.from_numpy(UNIT["mh_params"])
    interest = torch.tensor(goldens.facts("unit")[f"{family}_soi"], dtype=torch.float32)
    sizes = interest[torch.from_numpy(UNIT[f"{family}_levels"]).long()]
    centres = torch.from_numpy(UNIT["mh_locations"])
    image = (
        torch.from_numpy(UNIT["mh2_im_inds"]).long() if prefix == "mh2" else torch.zeros(5).long()
    )
    options = {"coordinates": "none"} if prefix == "mh_norel" else {}
    params = params[:, :153] if prefix == "mh_norel" else params
    for i in range(len(features)):
        mine = image == i
        logits = logits_of(  # pyright: ignore[reportCallIssue]
            features[i : i + 1],
            params[mine][None],
            centres[mine][None],
            sizes[mine][None],
            stride=8,
            **options,
        )
        for factor, stride in ((1, 8), (2, 4), (4, 2)):
            key = f"{prefix}_logits_stride{stride}"
            if key in UNIT:
                up = aligned_bilinear(logits, factor)[0].numpy()
                np.testing.assert_allclose(up, UNIT[key][mine.numpy()], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count", [500, 1500])
def test_class_nms(count: int) -> None:
    boxes, scores, labels = (
        torch.from_numpy(UNIT[f"nms{count}_{part}"])[None]
        for part in ("boxes", "scores", "classes")
    )
    keep, kept = class_nms(boxes, scores, labels, iou_threshold=0.6, max_detections=count)
    assert keep[0, : int(kept)].tolist() == UNIT[f"nms{count}_keep"].tolist()
    assert (keep[0, int(kept) :] == -1).all()


@pytest.mark.parametrize(
    ("prefix", "source", "topk"),
    [
        ("sel_thr_with_ctr", "unit", 1000),
        ("sel_thr_cls_only", "unit", 1000),
        ("sel", "M_mmdet_R50", 1000),
        ("sel120", "M_mmdet_R50", 120),
    ],
)
def test_complete_candidate_selection(prefix: str, source: str, topk: int) -> None:
    mmdet = source != "unit"
    maps = [
        [torch.from_numpy(UNIT[f"sel_l{level}_{part}"]) for level in range(3)]
        for part in ("cls", "reg", "ctr")
    ]
    found = select_candidates(
        *maps,
        strides=(8, 16, 32),
        image_sizes=torch.tensor([[96, 128], [90, 120]]),
        topk=topk,
        score_threshold=0.05,
        threshold_by="product" if prefix == "sel_thr_with_ctr" else "class",
        rank_by="class" if mmdet else "product",
        clip=mmdet,
    )
    assert found.boxes is not None
    keep, count = class_nms(
        found.boxes, found.scores, found.labels, iou_threshold=0.6, max_detections=100
    )
    golden = goldens.arrays(source)
    det = "det_" if mmdet else ""
    for i in range(2):
        index = keep[i, : int(count[i])].long()
        case = f"{prefix}_im{i}_{det}"
        boxes = golden[f"{case}boxes{'_net' if mmdet else ''}"]
        scores = found.scores[i][index]
        scores = scores if mmdet else scores.sqrt()
        order = np.lexsort((golden[f"{case}classes"], -golden[f"{case}scores"].round(5)))
        ours = np.lexsort((found.labels[i][index].numpy(), -scores.numpy().round(5)))
        np.testing.assert_allclose(
            scores.numpy()[ours], golden[f"{case}scores"][order], rtol=1e-4, atol=1e-5
        )
        labels = found.labels[i][index].numpy()
        assert labels[ours].tolist() == golden[f"{case}classes"][order].tolist()
        np.testing.assert_allclose(
            found.boxes[i][index].numpy()[ours], boxes[order], rtol=1e-4, atol=1e-3
        )
