"""Tables of whole images from the files in results/whole_image."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "whole_image"
PACKAGES = ("onnxruntime", "openvino", "torch", "ultralytics", "rfdetr")
CLOCKS = {"end_to_end": "end to end", "pipeline": "to network masks", "engine": "network"}
Result = Mapping[str, Any]


def parts(results: Path = RESULTS) -> dict[str, str]:
    """Every part by name; one whose script has not run yet says so."""
    makers = {
        "whole_image": whole_image,
        "precisions": precisions,
        "instances": instances,
        "rivals": rivals,
        "throughput": throughput,
        "mask_nms": mask_nms,
        "capi": capi,
    }
    return {name: _part(results / f"{name}.json", make) for name, make in makers.items()}


def _part(path: Path, make: Callable[[Result], str]) -> str:
    if not path.exists():
        return f"Not measured yet: `python -m benchmarks.{path.stem}`."
    result = json.loads(path.read_text())
    return f"{make(result)}\n\n{_machine(result['environment'])}"


def whole_image(result: Result) -> str:
    """Ours beside the same weights in eager torch, and our clocks."""
    rows = []
    for case in result["results"]:
        times = [case["times_ms"][side]["p50"] for side in ("ours", "torch")]
        clocks = [case["clocks_ms"][clock]["p50"] for clock in CLOCKS]
        same = case["agreement"]
        cells = [
            _what(case),
            _artefact(case["artefact"]),
            *milliseconds(*times),
            f"{case['ratio']:.2f}x",
        ]
        cells += [f"{same['partners']} of {same['instances'][1]}", f"{same['least_mask_iou']:.4f}"]
        rows.append([*cells, *milliseconds(*clocks)])
    heads = ["model", "artefact", "ours, ms", "eager torch, ms", "ratio", "same instances"]
    heads += ["min mask IoU", *(f"ours {clock}, ms" for clock in CLOCKS.values())]
    first = result["results"][0]
    return markdown(heads, rows) + (
        "\n\nInside the time of both: a frame in memory, its resizing, to boxes, scores, labels "
        "and boolean masks [K, H, W] of its size. The three last columns: to masks cut out at "
        "native size, to masks at the network's resolution, and the network alone. Medians of "
        f"{first['times_ms']['ours']['count']} interleaved runs, {first['threads']} threads."
    )


def precisions(result: Result) -> str:
    """Each precision and runtime beside float32 in ONNX Runtime."""
    rows = []
    for case in result["results"]:
        for row in case["precisions"]:
            rows.append(
                [
                    _what(case),
                    _artefact(row["artefact"]),
                    str(row["instances"]),
                    *milliseconds(row["times_ms"]["p50"]),
                    f"{row['ratio']:.2f}x",
                    *milliseconds(row["engine_ms"]["p50"]),
                    f"{row['engine_ratio']:.2f}x",
                ]
            )
    heads = ["model", "artefact", "instances", "end to end, ms", "ratio"]
    heads += ["network alone, ms", "ratio"]
    first = result["results"][0]
    return markdown(heads, rows) + (
        "\n\nInside the end-to-end time: a frame in memory, its resizing, to boxes, scores, labels "
        "and native-size masks, cut out. Medians of "
        f"{first['precisions'][0]['times_ms']['count']} interleaved runs, "
        f"{first['threads']} threads."
    )


def instances(result: Result) -> str:
    """Times by the number of instances, then by the size of the image."""
    counts = [str(row["instances"]) for row in result["results"][0]["curve"]]
    rows = []
    for case in result["results"]:
        times = [row["times_ms"]["p50"] for row in case["curve"]]
        rows.append(
            [_what(case), *milliseconds(*times), f"{100 * case['cost_of_100_over_1']:.1f} %"]
        )
    heads = ["model", *(f"{count}, ms" for count in counts), "100 over 1"]
    of_size = result["by_size"]
    sizes = [
        [
            of_size["model"],
            size(row["image"]),
            size(row["canvas"]),
            str(row["instances"]),
            *milliseconds(row["times_ms"]["p50"], row["engine_ms"]["p50"]),
        ]
        for row in of_size["sizes"]
    ]
    size_heads = ["model", "image and masks", "network", "instances", "end to end, ms"]
    first = result["results"][0]
    return "\n\n".join(
        [
            markdown(heads, rows),
            markdown([*size_heads, "network alone, ms"], sizes),
            "One export for each number of instances, all slots full (0: nothing above the "
            f"threshold); {_artefact(first['artefact'])}. Inside the time: as above. Medians of "
            f"{first['curve'][0]['times_ms']['count']} interleaved runs, "
            f"{first['threads']} threads.",
        ]
    )


def rivals(result: Result) -> str:
    """Other packages beside ours."""
    rows = [
        [
            f"{side['name']} ({side['package']})",
            side["runtime"],
            f"{side['parameters'] / 1e6:.1f} M",
            size(side["canvas"]),
            str(side["instances"]),
            *milliseconds(side["times_ms"]["p50"]),
            f"{side['ratio']:.2f}",
        ]
        for side in result["sides"]
    ]
    heads = ["network", "runtime", "parameters", "input", "instances", "ms", "times ours"]
    return markdown(heads, rows) + (
        f"\n\nInside the time: a frame of {size(result['image'])} in memory to dense masks of its "
        "size, by each package's own call; float32, synthetic weights. Medians of "
        f"{result['sides'][0]['times_ms']['count']} interleaved runs, {result['threads']} threads."
    )


def throughput(result: Result) -> str:
    """Images per second by workers, threads and batch."""
    first, *_ = cases = result["results"]
    heads = ["model", *first["images_per_second"]]
    rows = [
        [case["what"], *(f"{rate:.2f}" for rate in case["images_per_second"].values())]
        for case in cases
    ]
    return markdown(heads, rows) + (
        "\n\nWorkers x threads of the model in each; the first has one worker. Medians of "
        f"{next(iter(first['times_ms'].values()))['count']} rounds of {first['images']} images, "
        "interleaved."
    )


def mask_nms(result: Result) -> str:
    """Mask NMS by kind and candidates beside box NMS."""
    rows = []
    for case in result["results"]:
        for label, row in case["rows"].items():
            kind, _, candidates = label.partition(" ")
            name = f"{kind}, {candidates} candidates" if candidates else kind
            whole, engine = row["times_ms"]["p50"], row["engine_ms"]["p50"]
            cells = [
                _what(case),
                name,
                *milliseconds(whole),
                f"{row['over_box']:.2f}x",
                *milliseconds(engine),
            ]
            rows.append(cells)
    first = result["results"][0]
    box = first["rows"]["box"]
    return markdown(["model", "NMS", "end to end, ms", "of box NMS", "network, ms"], rows) + (
        f"\n\nONNX Runtime, float32, {first['threads']} threads; {box['instances']} instances; "
        f"medians of {box['times_ms']['count']} interleaved runs."
    )


def capi(result: Result) -> str:
    """What the C library adds to the Python call."""
    rows, times = [], {}
    for masks, times in result["formats"].items():
        calls = (times[name]["p50"] for name in ("call_ms", "python_ms"))
        around = f"{1000 * times['around_ms']['p50']:.0f}"
        rows.append([masks, *milliseconds(*calls), around, f"{100 * times['overhead']:.2f} %"])
    heads = ["masks as", "call from C, ms", "Python inside, ms", "around it, us", "overhead"]
    return markdown(heads, rows) + (
        f"\n\n{result['what']}; {result['threads']} threads; medians of "
        f"{times['call_ms']['count']} calls."
    )


def _what(case: Result) -> str:
    return f"`{case['model']}`, {size(case['canvas'])}"


def _artefact(artefact: Mapping[str, str]) -> str:
    return f"{artefact['precision']}, {artefact['runtime']}"


def size(shape: Sequence[int]) -> str:
    """Rows and columns as "512x704"."""
    return f"{shape[0]}x{shape[1]}"


def milliseconds(*times: float) -> list[str]:
    """Times as texts: whole numbers from 100 on, else one digit after the point."""
    return [f"{time:.0f}" if time >= 100 else f"{time:.1f}" for time in times]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(environment: Result) -> str:
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
    return f"{environment['cpu']}, {environment['cores']} cores; {', '.join(versions)}."
