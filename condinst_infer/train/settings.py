"""How a model is trained: one frozen dataclass, and the recipes of the papers."""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

from condinst_infer.config.model import CondInstConfig
from condinst_infer.errors import ConfigError, did_you_mean
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}."
                )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be at least 1.")
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
    """What the papers train `config` with; "short" is a schedule for a few thousand images.

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
    return replaced(TrainConfig(), **changes)


def field_names() -> tuple[str, ...]:
    """Every field of TrainConfig and its sections, flat."""
    own = [f.name for f in fields(TrainConfig) if f.name not in _SECTIONS]
    return (*own, *(f.name for cls in _SECTIONS.values() for f in fields(cls)))


def replaced(settings: TrainConfig, **values: Any) -> TrainConfig:
    """`settings` with fields replaced, each named flat: `replaced(s, iterations=100, crop=384)`.

    Raises:
        ConfigError: unknown field or a value it can't have.
    """
    changes: dict[str, Any] = {}
    for name, value in values.items():
        section = next((s for s, c in _SECTIONS.items() if name in _types(c)), None)
        kind = _types(TrainConfig if section is None else _SECTIONS[section]).get(name)
        if kind is None or name in _SECTIONS:
            hint = did_you_mean(name, field_names())
            raise ConfigError(f"there is no training setting {name!r}{hint}")
        value = _checked(name, value, kind)
        if section is None:
            changes[name] = value
        else:
            base = changes.get(section, getattr(settings, section))
            changes[section] = dataclasses.replace(base, **{name: value})
    return dataclasses.replace(settings, **changes)


def _types(cls: type) -> dict[str, Any]:
    return {f.name: f.type for f in fields(cls)}


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type wants it."""
    is_number = type(value) in (int, float) and value >= 0  # not NaN either
    if kind is float and is_number:
        return float(value)
    if kind is int and is_number and type(value) is int:
        return value
    if kind in (bool, str) and type(value) is kind:
        return value
    if kind == tuple[int, ...] and isinstance(value, list | tuple) and value:
        if all(type(v) is int for v in value):
            return tuple(value)
    wanted = {
        int: "a whole number >= 0",
        float: "a number >= 0",
        bool: "true or false",
        str: "text",
    }
    raise ConfigError(
        f"{name} is {value!r}; it must be {wanted.get(kind, 'a list of whole numbers')}."
    )
