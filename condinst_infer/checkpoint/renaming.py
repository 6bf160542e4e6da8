"""Renaming foreign weights into ours, strictly."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from condinst_infer.config.model import CondInstConfig
from condinst_infer.errors import CheckpointError
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.model.weights import check_finite

UNUSED = ""  # what a rule's new name is when the tensor is known and has no use here

Rules = Sequence[tuple[str, str]]

_RESNET: Rules = (
    (r"conv1\.(weight)", r"backbone.stem.conv.\1"),
    (r"bn1\.(\w+)", r"backbone.stem.norm.\1"),
    (r"layer{k}\.(\d+)\.conv2\.conv_offset\.(\w+)", r"backbone.res{level}.\1.conv2.offset.\2"),
    (r"layer{k}\.(\d+)\.conv(\d)\.(weight)", r"backbone.res{level}.\1.conv\2.conv.\3"),
    (r"layer{k}\.(\d+)\.bn(\d)\.(\w+)", r"backbone.res{level}.\1.conv\2.norm.\3"),
    (r"layer{k}\.(\d+)\.downsample\.0\.(weight)", r"backbone.res{level}.\1.shortcut.conv.\2"),
    (r"layer{k}\.(\d+)\.downsample\.1\.(\w+)", r"backbone.res{level}.\1.shortcut.norm.\2"),
)
TORCHVISION_RESNET: Rules = [  # layer1 to layer4 are res2 to res5
    (old.replace("{k}", str(k)), new.replace("{level}", str(k + 1)))
    for old, new in _RESNET
    for k in range(1, 5)
]

DLA: Rules = (
    # the outer projection of a tree of depth 2 is computed and thrown away in the original
    (r"level[34]\.project\.[01]\.\w+", UNUSED),
    (r"(base_layer|level[01])\.0\.(weight)", r"backbone.\1.conv.\2"),
    (r"(base_layer|level[01])\.1\.(\w+)", r"backbone.\1.norm.\2"),
    (r"(level[\w.]+)\.conv([12])\.(weight)", r"backbone.\1.conv\2.conv.\3"),
    (r"(level[\w.]+)\.bn([12])\.(\w+)", r"backbone.\1.conv\2.norm.\3"),
    (r"(level[\w.]+)\.root\.conv\.(weight)", r"backbone.\1.root.conv.\2"),
    (r"(level[\w.]+)\.root\.bn\.(\w+)", r"backbone.\1.root.norm.\2"),
    (r"(level[\w.]+)\.project\.0\.(weight)", r"backbone.\1.project.conv.\2"),
    (r"(level[\w.]+)\.project\.1\.(\w+)", r"backbone.\1.project.norm.\2"),
)


def add_prefix(prefix: str, rules: Rules) -> list[tuple[str, str]]:
    """`rules` for names that begin with the pattern `prefix`, which has no groups."""
    return [(prefix + old, new) for old, new in rules]


def renamer(rules: Rules) -> Callable[[str], str | None]:
    """A function from foreign name to ours: UNUSED, or None where no rule matches."""
    compiled = [(re.compile(old), new) for old, new in rules]

    def rename(name: str) -> str | None:
        for pattern, new in compiled:
            if match := pattern.fullmatch(name):
                return match.expand(new)
        return None

    return rename


def model_from_renamed(
    config: CondInstConfig, weights: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> CondInst:
    """The model of `config` with every tensor of `weights` in its place, in evaluation mode.

    Raises:
        CheckpointError: lists every tensor that is missing, surplus or of the wrong shape, or
            names one that is not finite.
    """
    with torch.device("meta"):
        model = build_condinst(config)
    expected = model.state_dict()
    found: dict[str, Tensor] = {}
    surplus, wrong = [], []
    for name, value in weights.items():
        new, tensor = rename(name), torch.as_tensor(value)
        if new == UNUSED or _is_counter(name):
            continue
        if new is None or new not in expected or new in found:
            surplus.append(name)
        elif tensor.shape.numel() != expected[new].shape.numel() or (
            tensor.dim() > 1 and tensor.shape != expected[new].shape
        ):
            wrong.append(f"{name} {list(tensor.shape)}, needed {list(expected[new].shape)}")
        else:
            found[new] = tensor.detach().reshape(expected[new].shape).to(torch.float32).clone()
            check_finite({name: found[new]})  # also of what was float64 and past float32
    counters = {n: torch.zeros((), dtype=torch.int64) for n in expected if _is_counter(n)}
    missing = expected.keys() - found.keys() - counters.keys()
    problems = {"missing": missing, "surplus": surplus, "of a wrong shape": wrong}
    listed = "; ".join(_list_names(kind, names) for kind, names in problems.items() if names)
    if listed:
        raise CheckpointError(f"the weights do not fit the configuration {config.name}: {listed}.")
    model.load_state_dict(found | counters, assign=True)
    return model.eval()


def weights_from_renamed(
    weights: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """The tensors of `weights` that have a place here, under our names.

    Raises:
        CheckpointError: one of them is not finite.
    """
    used = {
        name: t for name, t in weights.items() if (new := rename(name)) and not _is_counter(new)
    }
    check_finite(used)
    return {rename(name) or UNUSED: tensor for name, tensor in used.items()}


def _list_names(kind: str, names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)} {kind} ({', '.join(names[:20])}{more})"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
