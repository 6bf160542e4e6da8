// What comes before and after the network of a file that `condinst export` wrote, in JavaScript
// without dependencies: for the page in this folder and for ../node/segment.mjs.
// The contract is export/README.md. Sizes are [height, width], boxes [x1, y1, x2, y2].

import { resize } from "./resize.mjs";

/**
 * Read what a model file says of itself, which ONNX Runtime does not hand to JavaScript.
 * @param {Uint8Array} onnx the content of the file
 * @returns {object} metadata_props["condinst"]: config, graph, size, batch, ...
 */
export function readMetadata(onnx) {
  let text;
  try {
    for (const [number, value] of protobufFields(onnx)) {
      if (number !== 14) continue; // ModelProto.metadata_props: pairs of key (1) and value (2)
      const pair = Object.fromEntries(protobufFields(value));
      const [key, content] = [1, 2].map((field) => new TextDecoder().decode(pair[field]));
      if (key === "condinst") text = content;
    }
  } catch {
    throw new Error("The model is not an ONNX file, or it is damaged.");
  }
  if (!text) throw new Error("The model has no metadata: `condinst export` did not write it.");
  const metadata = JSON.parse(text);
  if (metadata.contract !== 1 || metadata.graph !== "full" || metadata.batch > 1) {
    throw new Error("The model is not of contract 1, --graph full and batch 1: export it so.");
  }
  return metadata;
}

/** The fields of a protobuf message as [number, bytes]; numbers and the like are passed over. */
function* protobufFields(bytes) {
  let at = 0;
  const varint = () => {
    for (let value = 0, scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new Error("the message ends within a number");
  };
  while (at < bytes.length) {
    const key = varint();
    const type = key % 8;
    if (![0, 1, 2, 5].includes(type)) throw new Error(`there is no type ${type}`);
    const length = type === 1 ? 8 : type === 5 ? 4 : varint(); // of type 0 it is the value
    if (type === 0) continue;
    if (type === 2) yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
    at += length;
    if (at > bytes.length) throw new Error("the message ends within a field");
  }
}

/**
 * Prepare an image for the network: BGR, resized, padded on the right and at the bottom.
 * @param {Uint8Array | Uint8ClampedArray} rgba pixels [height, width, 4]; alpha is dropped
 * @param {number[]} imageSize
 * @param {object} metadata of `readMetadata`
 * @returns {{images: Uint8Array, shape: number[], netSize: Int32Array, imageSize: number[]}}
 *   inputs of the network: `images` has `shape` [1, H, W, 3], `image_sizes` [1, 2] is `netSize`
 */
export function networkInput(rgba, imageSize, { config, size }) {
  let netSize = networkSize(imageSize, config.input);
  const divisor = config.input.size_divisor;
  const canvas = size ?? netSize.map((side) => Math.ceil(side / divisor) * divisor);
  if (size) { // a file of one size: what does not fit is scaled down, never cropped
    const scale = Math.min(1, size[0] / netSize[0], size[1] / netSize[1]);
    netSize = netSize.map((side, i) => Math.min(size[i], rounded(side * scale)));
  }
  const bgr = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; to < bgr.length; from += 4, to += 3) {
    for (let c = 0; c < 3; c++) bgr[to + c] = rgba[from + 2 - c];
  }
  const resized = resize(bgr, imageSize, netSize);
  const images = new Uint8Array(canvas[0] * canvas[1] * 3);
  for (let y = 0, line = 3 * netSize[1]; y < netSize[0]; y++) {
    images.set(resized.subarray(y * line, (y + 1) * line), y * canvas[1] * 3);
  }
  return { images, shape: [1, ...canvas, 3], netSize: Int32Array.from(netSize), imageSize };
}

const rounded = (side) => Math.max(1, Math.floor(side + 0.5));

/** The size of an image on the canvas: its shorter side is short_side, if the longer one fits. */
function networkSize(size, { short_side, long_side, resize_rule }) {
  const [short, long] = [Math.min(...size), Math.max(...size)];
  if (resize_rule === "min_scale") {
    const scale = Math.min(long_side / long, short_side / short);
    return size.map((side) => rounded(side * scale));
  }
  // "short_first" is detectron2's: two scales in turn, which round unlike their product at times
  const sides = size.map((side) => (side === short ? short_side : side * (short_side / short)));
  const shrink = Math.max(...sides) > long_side ? long_side / Math.max(...sides) : 1;
  return sides.map((side) => rounded(side * shrink));
}

/**
 * Make instances of what the network puts out, best score first.
 * @param {object} outputs by name: num_detections [1], boxes [1, K, 4], scores and labels [1, K],
 *   masks [1, K, h, w]
 * @param {{netSize: Int32Array, imageSize: number[]}} input of `networkInput`
 * @param {object} metadata of `readMetadata`
 * @returns {{label: number, score: number, box: number[], segmentation: object}[]} box in pixels
 *   of the image, segmentation as COCO's run lengths: {size, counts}
 */
export function instancesFromOutputs(outputs, { netSize, imageSize }, { config }) {
  const [, , ...cells] = outputs.masks.dims;
  const stride = config.mask.mask_stride;
  const [rows, columns] = cells.map((n, i) => maskAxis(n, stride, netSize[i], imageSize[i]));
  const instances = [];
  for (let slot = 0; slot < outputs.num_detections.data[0]; slot++) {
    const counts = paste(maskOfSlot(outputs.masks, slot), rows, columns);
    const netBox = [...outputs.boxes.data.subarray(4 * slot, 4 * slot + 4)];
    const imageBox = netBox.map((place, i) => {
      const [side, netSide] = [imageSize[1 - (i % 2)], netSize[1 - (i % 2)]];
      return clip(Math.fround(place * Math.fround(side / netSide)), 0, side);
    });
    // a network with mask NMS predicts no boxes
    const box = config.detect.nms === "mask" ? boxOfRuns(counts, imageSize[0]) : imageBox;
    if (box[0] >= box[2] || box[1] >= box[3]) continue; // it lies outside the image
    const [label, score] = [outputs.labels.data[slot], outputs.scores.data[slot]];
    instances.push({ label, score, box, segmentation: { size: imageSize, counts } });
  }
  return instances;
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** The probabilities of one slot, [h * w]; some runtimes give those of fp16 files as bits. */
function maskOfSlot({ data, dims: [, , h, w] }, slot) {
  const mask = data.subarray(slot * h * w, (slot + 1) * h * w);
  if (!(mask instanceof Uint16Array)) return mask;
  return Float32Array.from(mask, (bits) => { // from 0 to 1: there is no sign
    const [exponent, fraction] = [bits >> 10, (bits & 1023) / 1024];
    return exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14;
  });
}

/**
 * The two mask cells that each pixel of the image lies between along one axis, and how far on.
 * The image is read by half-pixel bilinear from network pixels, and cell i is network pixel
 * stride * i + floor(stride / 2). In float32 as in the package: masks are cut at exactly 0.5.
 */
function maskAxis(cells, stride, netSide, imageSide) {
  const { fround } = Math;
  const scale = fround(netSide / imageSide);
  const places = Float32Array.from({ length: imageSide }, (_, pixel) => {
    const netPixel = clip(fround(fround((pixel + 0.5) * scale) - 0.5), 0, netSide - 1);
    return clip(fround(fround(netPixel - Math.floor(stride / 2)) / stride), 0, cells - 1);
  });
  const low = Int32Array.from(places);
  return {
    cells,
    low,
    high: low.map((cell) => Math.min(cell + 1, cells - 1)),
    part: places.map((place, pixel) => place - low[pixel]),
  };
}

/** Bring one mask [h * w] to the image and cut it at 0.5: the lengths of runs down the columns. */
function paste(mask, rows, columns) {
  let [top, bottom, left, right] = [Infinity, -1, Infinity, -1]; // cells above 0.5
  for (let i = 0; i < mask.length; i++) {
    if (!(mask[i] > 0.5)) continue;
    const [y, x] = [Math.floor(i / columns.cells), i % columns.cells];
    [top, bottom] = [Math.min(top, y), y];
    [left, right] = [Math.min(left, x), Math.max(right, x)];
  }
  // No other pixel can pass than those that read one of these cells.
  const [y0, y1] = pixelsOf(rows, top, bottom);
  const [x0, x1] = pixelsOf(columns, left, right);
  const [height, width] = [rows.low.length, columns.low.length];
  const counts = [];
  let [start, value] = [0, false]; // of the open run
  const put = (position, next) => {
    if (next === value) return;
    counts.push(position - start);
    start = position;
    value = next;
  };
  const strip = new Float32Array(rows.cells); // one column of the image, in rows of the mask
  for (let x = x0; x < x1; x++) {
    for (let cell = rows.low[y0]; cell <= rows.high[y1 - 1]; cell++) {
      const a = mask[cell * columns.cells + columns.low[x]];
      const b = mask[cell * columns.cells + columns.high[x]];
      strip[cell] = a + columns.part[x] * (b - a);
    }
    if (y0 > 0) put(x * height, false);
    for (let y = y0; y < y1; y++) {
      const a = strip[rows.low[y]];
      put(x * height + y, a + rows.part[y] * (strip[rows.high[y]] - a) > 0.5);
    }
    if (y1 < height) put(x * height + y1, false);
  }
  put(x1 * height, false);
  if (start < height * width) counts.push(height * width - start);
  return counts;
}

/** The first pixel that reads one of the cells first..last, and the one after the last. */
function pixelsOf({ low, high }, first, last) {
  const start = high.findIndex((cell) => cell >= first);
  return start < 0 ? [0, 0] : [start, low.findLastIndex((cell) => cell <= last) + 1];
}

/** The box of the pixels of a mask, from its runs; one without area if it is empty. */
function boxOfRuns(counts, height) {
  const box = [Infinity, Infinity, 0, 0];
  counts.reduce((start, length, run) => {
    const [first, last] = [start, start + length - 1];
    const columns = [first, last].map((position) => Math.floor(position / height));
    const isOne = columns[0] === columns[1];
    if (run % 2) {
      box[0] = Math.min(box[0], columns[0]);
      box[1] = Math.min(box[1], isOne ? first % height : 0);
      box[2] = Math.max(box[2], columns[1] + 1);
      box[3] = Math.max(box[3], isOne ? (last % height) + 1 : height);
    }
    return start + length;
  }, 0);
  return box;
}
