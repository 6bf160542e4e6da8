"""One image through a CondInst model in ONNX Runtime: image in, pasted masks out.

    pip install numpy pillow onnxruntime
    python onnxruntime_python.py MODEL.onnx IMAGE.png -o instances.json --overlay overlay.png

The numbers of the sections are those of export/README.md, the contract of such a file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def main():
    parser = argparse.ArgumentParser(description="Find instances in one image.")
    parser.add_argument("model", help=".onnx file, full graph")
    parser.add_argument("image")
    parser.add_argument("-o", "--output", default="instances.json")
    parser.add_argument("--overlay", help="picture to write, masks and boxes drawn in")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    model = json.loads(session.get_modelmeta().custom_metadata_map["condinst"])
    if model["graph"] != "full":
        raise SystemExit("this file stops before NMS: tail.py has the rest")

    image = read_image(options.image)
    instances = find_instances(session, model, image)
    for instance in instances:
        name = model["config"]["class_names"][instance["label"]]
        x1, y1, x2, y2 = instance["box"]
        print(f"{name} {instance['score']:.3f} at {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")
    if options.overlay:
        draw(image, instances).save(options.overlay)
    write(options.output, instances)


def read_image(path):
    """BGR uint8 [H, W, 3], upright; an alpha channel is dropped."""
    with Image.open(path) as image:
        rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return np.ascontiguousarray(rgb[:, :, ::-1])


def find_instances(session, model, image):
    """Dicts of label, score, box in image pixels and mask bool [H, W], best score first."""
    feeds = prepare(model, image)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    return instances_of(model, outputs, feeds["image_sizes"][0].tolist(), image.shape[:2])


def prepare(model, image):
    """The inputs of the network."""
    net_size, canvas = sizes(image.shape[:2], model["config"]["input"], model["size"])
    batch = model["batch"] or 1  # a static batch is filled up: only the first image is read
    images = np.zeros((batch, *canvas, 3), np.uint8)
    images[0, : net_size[0], : net_size[1]] = resize(image, net_size)
    return {"images": images, "image_sizes": np.array([net_size] * batch, np.int32)}


# --- 2. sizes ------------------------------------------------------------------------------------


def sizes(size, rule, fixed):
    """(height, width) that an image is resized to, and the canvas it goes on."""
    short_side, long_side = rule["short_side"], rule["long_side"]
    short, long = min(size), max(size)
    if rule["resize_rule"] == "min_scale":
        scale = min(long_side / long, short_side / short)
        sides = [side * scale for side in size]
    else:
        sides = [short_side if side == short else side * (short_side / short) for side in size]
        if max(sides) > long_side:
            scale = long_side / max(sides)
            sides = [side * scale for side in sides]
    net = [rounded(side) for side in sides]
    if fixed is None:
        divisor = rule["size_divisor"]
        return net, [-(-side // divisor) * divisor for side in net]
    scale = min(1.0, fixed[0] / net[0], fixed[1] / net[1])
    height, width = (rounded(side * scale) for side in net)
    return [min(height, fixed[0]), min(width, fixed[1])], fixed


def rounded(side):
    return max(1, int(side + 0.5))


# --- 3. resize -----------------------------------------------------------------------------------


def resize(image, net_size):
    """Image uint8 [H, W, 3] at (height, width): enlarged as OpenCV does, else as Pillow does."""
    height, width = net_size
    if (height, width) == image.shape[:2]:
        return image
    if height < image.shape[0] or width < image.shape[1]:
        shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(shrunk)
    # bit by bit cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    (left, right), (a, b) = enlarged_axis(image.shape[1], width)
    wide = image[:, left] * a[:, None] + image[:, right] * b[:, None]  # int32 [H, width, 3]
    (top, bottom), (a, b) = enlarged_axis(image.shape[0], height)
    upper, lower = (
        (wide[rows] >> 4) * w[:, None, None] >> 16 for rows, w in ((top, a), (bottom, b))
    )
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def enlarged_axis(inputs, outputs):
    """The two inputs that each output is mixed of, and their weights in 1/2048: int32."""
    place = ((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5).astype(np.float32)
    low = np.floor(place)
    weights = np.rint(np.stack([1 - (place - low), place - low]) * 2048)
    return np.clip([low, low + 1], 0, inputs - 1).astype(np.int32), weights.astype(np.int32)


# --- 5. back to the image ------------------------------------------------------------------------


def instances_of(model, outputs, net_size, size):
    """The instances of the first image of a batch, (height, width) pixels large."""
    config = model["config"]
    boxes, scores, labels, masks = (outputs[n][0] for n in ("boxes", "scores", "labels", "masks"))
    scale = np.array([size[1] / net_size[1], size[0] / net_size[0]] * 2, np.float32)
    boxes = np.clip(boxes * scale, 0, np.array([size[1], size[0]] * 2, np.float32))
    rows, columns = (
        paste_matrix(cells, config["mask"]["mask_stride"], net, pixels)
        for cells, net, pixels in zip(masks.shape[1:], net_size, size, strict=True)
    )
    instances = []
    for k in range(outputs["num_detections"][0]):
        box, mask = boxes[k], paste(masks[k], rows, columns)
        if config["detect"].get("nms") == "mask":  # such models have no boxes of their own
            box = box_of(mask)
        if box[2] > box[0] and box[3] > box[1]:
            found = {"label": int(labels[k]), "score": float(scores[k])}
            instances.append({**found, "box": box.tolist(), "mask": mask})
    return instances


def paste_matrix(cells, stride, net, pixels):
    """Weights of mask cells in image pixels along one axis, float32 [pixels, cells].

    Pixels of the image lie between pixels of the network, and those between two cells.
    """
    half, scale = np.float32(0.5), np.float32(net) / np.float32(pixels)
    place = np.clip((np.arange(pixels, dtype=np.float32) + half) * scale - half, 0, net - 1)
    cell = np.clip((place - stride // 2) / stride, 0, cells - 1)  # all of it in float32
    low = cell.astype(int)
    high = np.minimum(low + 1, cells - 1)
    weights = np.zeros((pixels, cells), np.float32)
    np.add.at(weights, (np.arange(pixels), low), 1 - (cell - low))
    np.add.at(weights, (np.arange(pixels), high), cell - low)
    return weights


def paste(mask, rows, columns):
    """The mask in the image, bool [H, W], from probabilities [h, w] at the mask stride."""
    pasted = np.zeros((len(rows), len(columns)), bool)
    above = mask > 0.5
    # a pixel can exceed 0.5 only where a cell does that it reads; the others are left out
    y, x = (np.flatnonzero(m @ above.any(axis)) for m, axis in ((rows, 1), (columns, 0)))
    pasted[np.ix_(y, x)] = rows[y] @ (mask.astype(np.float32) @ columns[x].T) > 0.5
    return pasted


def box_of(mask):
    """The tight box of a mask; zeros where it is empty."""
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(y):
        return np.zeros(4)
    return np.array([x[0], y[0], x[-1] + 1, y[-1] + 1], float)


# --- 6. results ----------------------------------------------------------------------------------


def write(path, instances):
    """Write a JSON list; masks become COCO RLE."""
    texts = [{k: v for k, v in one.items() if k != "mask"} for one in instances]
    for text, one in zip(texts, instances, strict=True):
        text["segmentation"] = runs_from_mask(one["mask"])
    Path(path).write_text(json.dumps(texts))


def runs_from_mask(mask):
    """COCO RLE, uncompressed: lengths of runs down the columns, zeros first."""
    pixels = mask.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=len(pixels)).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def draw(image, instances):
    """The image with masks and boxes, a Pillow image."""
    random = np.random.default_rng(0)
    picture = image[:, :, ::-1].copy()
    for instance in instances:
        colour = random.integers(64, 256, 3)
        picture[instance["mask"]] = (picture[instance["mask"]] + colour) // 2
    picture = Image.fromarray(picture)
    pen = ImageDraw.Draw(picture)
    for instance in instances:
        x1, y1, x2, y2 = instance["box"]
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=(255, 255, 255))
    return picture


if __name__ == "__main__":
    main()
