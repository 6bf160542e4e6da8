"""Training settings: one frozen dataclass, and the recipes of the papers."""

from dataclasses import dataclass, field, fields
from typing import Any

from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.validation import check_field, replace_fields
from condinst_infer.errors import ConfigError
from condinst_infer.train.augment import AugmentConfig
from condinst_infer.train.losses import LossConfig


@dataclass(frozen=True)
class TrainConfig:
    """The loop; the defaults are the papers' schedule for COCO (section 4.1) and Detectron2's."""

    iterations: int = 90_000
    images_per_batch: int = 16  # over all processes
    accumulate: int = 1  # parts a batch is computed in, one after the other, to save memory
    optimizer: str = "sgd"  # "adamw"
    learning_rate: float = 0.01
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0  # of norm layers; Detectron2 WEIGHT_DECAY_NORM
    schedule: str = "steps"  # "cosine" falls to 0
    steps: tuple[int, ...] = (60_000, 80_000)  # iterations after which the rate is a tenth
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001  # of the rate, at the first iteration
    clip_norm: float = 0.0  # largest gradient norm; 0 does not clip
    amp: str = "off"  # "bf16" (any device), "fp16" (GPU): convolutions in half precision
    sync_bn: bool = True  # batch statistics over all GPUs; journal paper section 4.8
    seed: int = 0
    workers: int = 2  # processes that load images, per training process
    keep_empty: bool = False  # train on images without objects too
    log_every: int = 20  # iterations
    save_every: int = 1000
    keep_checkpoints: int = 2
    eval_every: int = 5000  # with validation data; the last iteration is always evaluated
    eval_max_dets: int = 100  # instances of an image that the evaluation looks at
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for section in (self, self.augment, self.loss):
            for f in fields(section):
                least = 1 if f.name in _AT_LEAST_ONE else 0
                value = getattr(section, f.name)
                check_field(f.name, f.type, value, choices=_CHOICES, least=least)
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate!r}; it must be above 0.")
        if min(self.augment.short_sides, default=0) < 32:
            raise ConfigError("short_sides must be sides of at least 32 pixels.")


_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("steps", "cosine"),
    "amp": ("off", "bf16", "fp16"),
}
_AT_LEAST_ONE = (
    *("iterations", "images_per_batch", "accumulate", "keep_checkpoints"),
    *("log_every", "save_every", "eval_every", "eval_max_dets"),
)
_SECTIONS: dict[str, type] = {"augment": AugmentConfig, "loss": LossConfig}
RECIPES = ("paper", "short")


def settings_for(config: CondInstConfig, recipe: str = "paper") -> TrainConfig:
    """The papers' settings for `config`; "short" is a schedule for a few thousand images.

    Real time: journal section 4.8, sizes of the official FCOS real-time settings; Cityscapes:
    section 4.9. "short": AdamW with a cosine, 3000 batches of 8 images.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}.")
    changes: dict[str, Any] = {}
    if config.input.short_side == 512:
        changes = {
            "iterations": 360_000,
            "steps": (300_000, 340_000),
            "short_sides": tuple(range(256, 609, 32)),
            "train_long_side": 900,
        }
    elif "cityscapes" in config.name:
        changes = {
            "iterations": 24_000,
            "images_per_batch": 8,
            "steps": (18_000,),
            "short_sides": tuple(range(800, 1025, 32)),
            "train_long_side": 2048,
        }
    if recipe == "short":
        changes |= {
            "iterations": 3000,
            "images_per_batch": 8,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_iterations": 200,
            "clip_norm": 10.0,
            "save_every": 500,
            "eval_every": 1000,
        }
    return replace_settings(TrainConfig(), **changes)


def field_names() -> tuple[str, ...]:
    """Every field of TrainConfig and its sections, flat."""
    own = [f.name for f in fields(TrainConfig) if f.name not in _SECTIONS]
    return (*own, *(f.name for cls in _SECTIONS.values() for f in fields(cls)))


def replace_settings(settings: TrainConfig, **values: Any) -> TrainConfig:
    """`settings` with fields replaced, each named flat: `iterations=100, crop=384`.

    Raises:
        ConfigError: unknown field or a value it can't have.
    """
    return replace_fields(settings, _SECTIONS, values, "training setting")
