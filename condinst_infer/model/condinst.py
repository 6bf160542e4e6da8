"""The CondInst network in PyTorch (arXiv:2003.05664, arXiv:2102.03026)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from condinst_infer.config.model import BackboneConfig, CondInstConfig, NeckConfig
from condinst_infer.model.dla import DLA34
from condinst_infer.model.flaw import Flaw
from condinst_infer.model.fpn import FPN, BiFPN
from condinst_infer.model.heads import HeadOutputs, Heads
from condinst_infer.model.mask_branch import MaskBranch
from condinst_infer.model.resnet import ResNet
from condinst_infer.model.select_instances import MaskHeads, select_by_boxes, select_by_masks
from condinst_infer.model.semantic_branch import SemanticBranch
from condinst_infer.model.spans import span
from condinst_infer.ops import (
    Candidates,
    boxes_from_masks,
    dynamic_mask_head,
    places_from_locations,
    select_candidates,
)


class CondInst(nn.Module):
    """Detector, controller, mask branch and dynamic mask heads of one config.

    Everywhere `images` is uint8 [N, H, W, 3], BGR, H and W multiples of 32, and `image_sizes`
    int32 [N, 2] holds the valid (rows, columns) of each image; the rest is ignored.
    """

    pixel_mean: Tensor  # float32 [3], BGR
    pixel_std: Tensor

    def __init__(
        self,
        config: CondInstConfig,
        *,
        backbone: ResNet | DLA34,
        neck: FPN | BiFPN,
        heads: Heads,
        mask_branch: MaskBranch,
        semantic_branch: SemanticBranch | None,
    ) -> None:
        super().__init__()
        self.config = config
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(config.input, name)
            values = values[::-1] if config.input.channel_order == "rgb" else values
            # on the CPU even where parameters are made without memory: no file brings them
            constant = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, constant, persistent=False)
        self.backbone, self.neck, self.fcos = backbone, neck, heads
        self.mask_branch, self.semantic_branch = mask_branch, semantic_branch
        self.flaw = Flaw()

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Network input [N, 3, H, W]: normalised, then zero outside the valid part."""
        x = images.float()  # TensorRT takes a uint8 input only if Cast is the first node
        x = x.permute(0, 3, 1, 2)  # [N, 3, H, W]: before, since rows broadcast faster than pixels
        x = (x - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]
        if self.config.input.channel_order == "rgb":
            x = x.flip(1)
        rows = torch.arange(x.shape[2], device=x.device) < image_sizes[:, :1]  # [N, H]
        columns = torch.arange(x.shape[3], device=x.device) < image_sizes[:, 1:]  # [N, W]
        valid = rows[:, None, :, None] & columns[:, None, None, :]  # [N, 1, H, W]
        x = x * valid.float()  # a Where takes three times as long
        return x.to(self.fcos.controller.weight.dtype)

    def pyramid(self, images: Tensor, image_sizes: Tensor) -> dict[int, Tensor]:
        """Feature pyramid: level -> [N, C, h, w]."""
        with span("normalize", "normalize"):
            x = self.normalize(images, image_sizes)
        return self.neck(self.backbone(x))

    def heads(self, images: Tensor, image_sizes: Tensor, *, boxes: bool = True) -> HeadOutputs:
        """Raw outputs of every location: what training and comparisons need.

        Without `boxes` the box branch does not run, and the regression has no level.
        """
        pyramid = self.pyramid(images, image_sizes)
        towers = self.fcos.towers(self._head_levels(pyramid))
        logits, regression, centreness = self.fcos.detector(towers, boxes=boxes)
        mask_inputs = self._mask_levels(pyramid)
        semantic = self.mask_branch.semantic
        return HeadOutputs(
            logits,
            regression,
            centreness,
            self.fcos.params_map(towers),
            self.mask_branch(mask_inputs),
            None if semantic is None else semantic(mask_inputs[0]),
            **self._semantic(pyramid),
        )

    def forward(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """Kept instances and their masks: the outputs of the full graph (export/README.md).

        Returns:
            num_detections int32 [N]; boxes float32 [N, K, 4], xyxy in network pixels, best score
            first; scores float32 [N, K]; labels int32 [N, K]; masks [N, K, H/s, W/s], probabilities
            at the mask stride. Unused slots hold 0, labels -1; no score of an image is finite if
            its class logits are not, or with mask NMS its features. Panoptic models also put out
            semantic [N, C, H/4, W/4], logits: class 0 is any thing, the others are stuff.
        """
        pyramid = self.pyramid(images, image_sizes)
        with span("fcos", "towers"):
            towers = self.fcos.towers(self._head_levels(pyramid))
        features = self.mask_branch(self._mask_levels(pyramid))
        with span("fcos", "detector"):
            detector = self.fcos.detector(towers, boxes=self.config.detect.nms == "box")
        candidates = self._candidates(detector, image_sizes)
        finished = self._finish(
            candidates, detector[0], features, lambda at: self.fcos.params_at(towers, at)
        )
        return finished | self._semantic(pyramid)

    def finish(self, raw: HeadOutputs, image_sizes: Tensor) -> dict[str, Tensor]:
        """The outputs of `forward` from those of `heads`."""
        return self._from_candidates(self._candidates(raw[:3], image_sizes), raw)

    def stages(self, raw: HeadOutputs, image_sizes: Tensor) -> dict[str, Tensor]:
        """The outputs of `detector` and of `forward` from those of `heads`."""
        candidates = self._candidates(raw[:3], image_sizes)
        return _detector_outputs(candidates, raw) | self._from_candidates(candidates, raw)

    def _from_candidates(self, candidates: Candidates, raw: HeadOutputs) -> dict[str, Tensor]:
        """The outputs of `forward`."""
        params = torch.cat([p.flatten(2) for p in raw.params], 2)  # [N, P, A]

        def params_at(locations: Tensor) -> Tensor:
            rows = locations.long()[:, None].expand(-1, params.shape[1], -1)
            return params.gather(2, rows).transpose(1, 2)  # [N, K, P]

        finished = self._finish(candidates, raw.class_logits, raw.mask_features, params_at)
        return finished | _present(semantic=raw.semantic)

    def detector(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """The outputs of the detector graph: candidates before NMS, and maps (export/README.md)."""
        boxes = self.config.detect.nms == "box"
        return self.before_nms(self.heads(images, image_sizes, boxes=boxes), image_sizes)

    def before_nms(self, raw: HeadOutputs, image_sizes: Tensor) -> dict[str, Tensor]:
        """The outputs of `detector` from those of `heads`."""
        return _detector_outputs(self._candidates(raw[:3], image_sizes), raw)

    def _candidates(
        self, detector: Sequence[tuple[Tensor, ...]], image_sizes: Tensor
    ) -> Candidates:
        detect = self.config.detect
        logits, regression, centreness = detector
        candidates = select_candidates(
            logits,
            regression if detect.nms == "box" else (),
            centreness,
            strides=self.config.strides,
            image_sizes=image_sizes,
            topk=detect.pre_nms_topk,
            score_threshold=detect.score_threshold,
            threshold_by=detect.threshold_by,
            rank_by=detect.rank_by,
            clip=detect.clip_before_nms,
        )
        return candidates._replace(scores=self.flaw(candidates.scores, *logits, *centreness))

    def _finish(
        self,
        candidates: Candidates,
        class_logits: Sequence[Tensor],
        features: Tensor,
        params_at: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Graph outputs; `params_at` maps locations [N, K] to mask head parameters [N, K, P]."""
        config, detect = self.config, self.config.detect
        shapes = [tuple(logits.shape[-2:]) for logits in class_logits]

        def heads_at(locations: Tensor) -> MaskHeads:
            places = places_from_locations(
                locations, shapes, config.strides, config.heads.sizes_of_interest
            )
            return params_at(locations), *places

        if detect.nms == "mask":
            kept, heads, count = select_by_masks(candidates, features, heads_at, config, self.flaw)
        else:
            kept, heads, count = select_by_boxes(candidates, heads_at, config)
        with span("DynamicMaskHead", "dynamic_mask_head"):
            masks = dynamic_mask_head(features, *heads, count, **config.mask_head_settings)
        boxes = kept.boxes
        if boxes is None:
            boxes = boxes_from_masks(masks, config.mask.mask_stride)
        real = torch.arange(kept.scores.shape[1], device=count.device) < count[:, None]  # [N, K]
        first = kept.scores[:, :1]  # like all of them not finite if the network is broken
        scores = kept.scores.clamp(min=0)
        scores = scores.sqrt() if detect.score_root else scores
        scores = torch.where(real, scores, 0.0)
        return {
            "num_detections": count,
            "boxes": torch.where(real[:, :, None], boxes, 0.0),
            "scores": torch.where(first.abs() <= 1, scores, first),
            "labels": torch.where(real, kept.labels, -1),
            "masks": masks,
        }

    def _semantic(self, pyramid: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """`semantic` [N, C, H/4, W/4] of a panoptic model, nothing of another one."""
        if self.semantic_branch is None:
            return {}
        levels = [pyramid[level] for level in self.config.panoptic.semantic_levels]
        return {"semantic": self.semantic_branch(levels)}

    def _head_levels(self, pyramid: Mapping[int, Tensor]) -> list[Tensor]:
        return [pyramid[level] for level in self.config.heads.head_levels]

    def _mask_levels(self, pyramid: Mapping[int, Tensor]) -> list[Tensor]:
        return [pyramid[level] for level in self.config.mask.mask_levels]


def _detector_outputs(candidates: Candidates, raw: HeadOutputs) -> dict[str, Tensor]:
    """The outputs of the detector graph."""
    return {
        **_present(candidate_boxes=candidates.boxes),
        "candidate_scores": candidates.scores,
        "candidate_labels": candidates.labels,
        "candidate_locations": candidates.locations,
        "params_map": torch.cat([p.flatten(2) for p in raw.params], 2),
        "mask_features": raw.mask_features,
        **_present(semantic=raw.semantic),
    }


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def build_condinst(config: CondInstConfig) -> CondInst:
    """The network that `config` describes, with initial weights."""
    backbone = build_backbone(config.backbone)
    channels, heads, mask = config.neck.neck_channels, config.heads, config.mask
    return CondInst(
        config,
        backbone=backbone,
        neck=build_neck(config.neck, backbone.channels),
        heads=Heads(
            channels,
            levels=len(heads.head_levels),
            num_classes=heads.num_classes,
            num_params=config.num_params,
            share_convs=heads.share_convs,
            class_convs=heads.class_convs,
            box_convs=heads.box_convs,
            norm=heads.tower_norm,
            scales=heads.regression_scales,
            prior_probability=heads.prior_probability,
        ),
        mask_branch=MaskBranch(
            channels,
            inputs=len(mask.mask_levels),
            channels=mask.mask_branch_channels,
            convs=mask.mask_branch_convs,
            out_channels=mask.mask_channels,
            norm=mask.mask_branch_norm,
            semantic_classes=heads.num_classes if mask.semantic_loss else 0,
        ),
        semantic_branch=SemanticBranch(
            channels,
            inputs=len(config.panoptic.semantic_levels),
            classes=1 + len(config.panoptic.stuff_names),
        )
        if config.is_panoptic
        else None,
    )


def build_backbone(config: BackboneConfig) -> ResNet | DLA34:
    """The backbone that `config` describes."""
    if config.backbone_type == "dla34":
        return DLA34(norm=config.backbone_norm, frozen_stages=config.frozen_stages)
    return ResNet(
        depth=config.backbone_type,
        norm=config.backbone_norm,
        frozen_stages=config.frozen_stages,
        stem_channels=config.stem_channels,
        res2_channels=config.res2_channels,
        groups=config.groups,
        width_per_group=config.width_per_group,
        stride_in_1x1=config.stride_in_1x1,
        deform_stages=config.deform_stages,
        deform_modulated=config.deform_modulated,
        deform_groups=config.deform_groups,
    )


def build_neck(config: NeckConfig, in_channels: Mapping[int, int]) -> FPN | BiFPN:
    """The feature pyramid that `config` describes, for backbone levels with these channels."""
    if config.neck_type == "bifpn":
        return BiFPN(
            in_channels,
            channels=config.neck_channels,
            norm=config.neck_norm,
            repeats=config.bifpn_repeats,
        )
    return FPN(
        in_channels,
        levels=config.neck_in_levels,
        extra_levels=config.neck_extra_levels,
        channels=config.neck_channels,
        norm=config.neck_norm,
    )
