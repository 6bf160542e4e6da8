"""Optimizer and learning rate."""

import math

import torch
from torch import nn

from condinst_infer.train.settings import TrainConfig

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)  # batch norms of every kind


def optimizer_for(model: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; norm layers have a weight decay of their own."""
    norms = [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()]
    of_norm = {id(parameter) for parameter in norms}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (id(p) in of_norm) == is_norm],
            "weight_decay": settings.norm_weight_decay if is_norm else settings.weight_decay,
        }
        for is_norm in (False, True)
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def learning_rate(iteration: int, settings: TrainConfig) -> float:
    """The rate of iteration 0, 1, ...: linear warm-up, then steps of a tenth or a cosine to 0."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    else:
        rate *= 0.1 ** sum(iteration >= step for step in settings.steps)
    if iteration < settings.warmup_iterations:
        done = iteration / settings.warmup_iterations
        rate *= settings.warmup_factor * (1 - done) + done
    return rate
