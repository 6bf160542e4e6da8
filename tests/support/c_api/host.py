"""A host that already runs Python: what the library gives beside what the package gives.

python host.py LIBRARY BRIGHT_MODEL PANOPTIC_MODEL MODEL IMAGE
"""

import ctypes
import gc
import sys
import threading
from pathlib import Path

import numpy as np

from benchmarks.capi import FORMATS, Image, Library, Pointer, image
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation


def array(pointer: Pointer, *shape: int) -> np.ndarray:
    return np.ctypeslib.as_array(pointer, shape) if all(shape) else np.zeros(shape)


def painted(library: Library, result: Pointer) -> np.ndarray:
    """The masks as the library paints them into rows with gaps, uint8 [K, H, W]."""
    found = result.contents
    maps = np.zeros((found.count, found.height, found.width + 5), np.uint8)
    stride = ctypes.c_ssize_t(found.width + 5)
    for index, rows in enumerate(maps):
        where = ctypes.c_void_p(rows.ctypes.data)
        library.checked(
            library.c.condinst_mask_paint(result, ctypes.c_size_t(index), 1, where, stride)
        )
    assert not maps[:, :, found.width :].any()
    return maps[:, :, : found.width]


def assert_equal(library: Library, result: Pointer, python: Instances) -> None:
    """Everything exactly equal; the result is freed."""
    found, count = result.contents, len(python)
    assert (found.height, found.width) == python.image_size and found.count == count
    assert np.array_equal(array(found.boxes, count, 4), python.boxes)
    assert np.array_equal(array(found.scores, count), python.scores)
    assert np.array_equal(array(found.labels, count), python.labels)
    assert tuple(found.names[i].decode() for i in range(count)) == python.names
    assert np.array_equal(painted(library, result), python.masks)
    for i, (crop, rle) in enumerate(zip(python.crops, python.rle(), strict=True)):
        mask = found.masks[i]
        if FORMATS[found.mask_format] == "rle":
            assert mask.rle.decode() == rle["counts"] and not mask.rows
            continue
        height, width = crop.mask.shape
        assert (mask.x, mask.y, mask.width, mask.height) == (crop.x, crop.y, width, height)
        rows = np.frombuffer(ctypes.string_at(mask.rows, mask.stride * height), np.uint8)
        rows = rows.reshape(height, mask.stride)
        if FORMATS[found.mask_format] == "bits":
            rows = np.unpackbits(rows, axis=1, bitorder="little")
            assert not rows[:, width:].any()
            rows = rows[:, :width]
        assert np.array_equal(rows, crop.mask)
    library.free(result)


def assert_equal_panoptic(library: Library, result: Pointer, python: PanopticSegmentation) -> None:
    found = result.contents
    assert np.array_equal(array(found.ids, *python.id_map.shape), python.id_map)
    assert found.segment_count == len(python.segments) > 2
    for i, needed in enumerate(python.segments):
        segment = found.segments[i]
        assert (segment.id, segment.category_id) == (needed.id, needed.category_id)
        assert (segment.name.decode(), segment.area) == (needed.name, needed.area)
        assert tuple(segment.box) == needed.box and segment.is_thing == needed.is_thing
        assert segment.instance == (-1 if needed.instance is None else needed.instance)
        assert segment.score == (needed.score or 0)
    assert_equal(library, result, python.instances)


def pixel_orders(library: Library, model: ctypes.c_void_p, pipeline: Pipeline) -> None:
    """Each order of channels, rows with gaps, and several sizes in one call."""
    bgr = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    bgr[20:50, 10:40] = 255
    alpha = np.full((70, 90, 1), 9, np.uint8)
    frames = {
        "bgr": bgr,
        "rgb": np.ascontiguousarray(bgr[:, :, ::-1]),
        "bgra": np.concatenate([bgr, alpha], 2),
        "rgba": np.concatenate([bgr[:, :, ::-1], alpha], 2),
    }
    images = [image(frame, order) for order, frame in frames.items()]
    grey, black = np.ascontiguousarray(bgr[:, :, 0]), np.zeros_like(bgr)
    images += [image(bgr[5:, 20:80]), image(black), image(grey[:, 3:], "gray")]
    needed = [bgr] * 4 + [bgr[5:, 20:80], black, grey[:, 3:]]
    for mask_format in FORMATS:
        found = library.find(model, images, mask_format)
        for result, frame in zip(found, needed, strict=True):
            assert_equal(library, result, pipeline(frame))


def nothing_stays(library: Library, model: ctypes.c_void_p) -> None:
    """No view of a frame outlives the call, and no object of Python's, or memory, piles up."""
    frame = np.full((64, 80, 3), 200, np.uint8)
    large = Image(frame.ctypes.data, 20_000, 20_000, 60_000, 0)

    def calls(n: int) -> int:
        for i in range(n):
            for result in library.find(model, [image(frame)] * 2, FORMATS[i % 3]):
                library.free(result)
            try:
                library.find(model, [large], "bits")
            except RuntimeError as error:
                assert "more than the limit" in str(error)
        assert not [o for o in gc.get_objects() if isinstance(o, memoryview) and o.nbytes > 15_000]
        gc.collect()  # what ctypes leaves
        return sys.getallocatedblocks()

    gc.disable()
    growth = np.diff([calls(200) for _ in range(4)])
    assert growth.min() < 100, growth  # one object kept by each call would be 200
    gc.enable()


def threads(library: Library, model: ctypes.c_void_p, pipeline: Pipeline) -> None:
    """8 threads x 50 calls, each thread with a frame of its own."""
    done = []

    def work(thread: int) -> None:
        frame = np.zeros((60 + thread, 90, 3), np.uint8)
        frame[thread * 3 :, thread * 5 :] = 150 + 10 * thread
        alone = pipeline(frame)
        for call in range(50):
            found = library.find(model, [image(frame)], FORMATS[call % 3])
            assert_equal(library, found[0], alone)
            done.append(thread)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == 400


def main() -> None:
    library = Library(Path(sys.argv[1]))
    bright, panoptic, path, photo = map(Path, sys.argv[2:])
    model, pipeline = library.open(bright), load(bright)
    nothing_stays(library, model)
    threads(library, model, pipeline)
    library.close(model)

    frame = read_image(photo)
    options = {"threads": 1, "max_detections": 40, "score_threshold": 0.5}
    model, pipeline = library.open(path, **options), load(path, threads=1)
    needed = pipeline(frame, max_detections=40, score_threshold=0.5)
    assert len(needed) == 40
    for mask_format in FORMATS:
        assert_equal(library, library.find(model, [image(frame)], mask_format)[0], needed)
    library.close(model)

    model, pipeline = library.open(panoptic), load(panoptic)
    pixel_orders(library, model, pipeline)  # the bright model would not see the order
    for mask_format in FORMATS:
        found = library.find(model, [image(frame)] * 2, mask_format, panoptic=True)
        for result in found:
            assert_equal_panoptic(library, result, pipeline.panoptic(frame))
    library.close(model)


if __name__ == "__main__":
    main()
