// The network and all other arithmetic of the page, in a thread of its own: the page never stands
// still. Messages to it: {model: URL or File}, {image: File}, {score}. Messages from it: {status},
// {model: description}, {picture, instances, seconds}, {overlay, score}, {error: a sentence}.
//
// WebAssembly runs on one core unless the server sends the headers that isolate the page:
// Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { instancesFromOutputs, networkInput, readMetadata } from "./condinst.mjs";

let session = null; // of the model, and what the model says of itself
let metadata = null;
let instances = []; // of the image, best score first
let imageSize = [0, 0]; // [height, width]

let queue = Promise.resolve(); // one message after the other
onmessage = ({ data }) => {
  const task = data.model ? openModel : data.image ? findInstances : drawOverlay;
  queue = queue.then(() => task(data)).catch(({ message }) => postMessage({ error: message }));
};

/** Load a model from a URL, or from a file that was chosen. */
async function openModel({ model }) {
  session = null;
  const bytes = typeof model === "string"
    ? await download(model)
    : new Uint8Array(await model.arrayBuffer());
  metadata = readMetadata(bytes);
  postMessage({ status: "Preparing the model" });
  session = await ort.InferenceSession.create(bytes).catch((error) => {
    throw new Error(`ONNX Runtime cannot run the model: ${error.message}`);
  });
  const { name, class_names: names } = metadata.config;
  postMessage({ model: `${name}, ${names.length} ${names.length === 1 ? "class" : "classes"}` });
}

/** The bytes behind a URL; tells how much has arrived. */
async function download(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) {
    throw new Error(`There is no model at ${url}: put one there, or choose a file.`);
  }
  const total = Number(response.headers.get("Content-Length"));
  const parts = [];
  let size = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    size += value.length;
    const share = total ? `${Math.floor((100 * size) / total)} % of ` : "";
    postMessage({ status: `Loading the model: ${share}${((total || size) / 1e6).toFixed(1)} MB` });
  }
}

/** Decode an image, run the network on it, and send picture and instances. */
async function findInstances({ image }) {
  if (!session) throw new Error("There is no model yet: choose an .onnx file.");
  // As the values are in the file: no conversion of colours. A canvas keeps colours multiplied by
  // alpha, which rounds those of transparent pixels; without alpha the values of a PNG are exact.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const picture = await createImageBitmap(image, options).catch(() => {
    throw new Error(`${image.name} is not an image that this browser can read.`);
  });
  postMessage({ status: "Finding instances" });
  const { width, height } = picture;
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0); // at its own size: a canvas decodes here, and resizes nothing
  const start = performance.now();
  const input = networkInput(pen.getImageData(0, 0, width, height).data, [height, width], metadata);
  const outputs = await session.run({
    images: new ort.Tensor("uint8", input.images, input.shape),
    image_sizes: new ort.Tensor("int32", input.netSize, [1, 2]),
  });
  instances = instancesFromOutputs(outputs, input, metadata);
  imageSize = [height, width];
  Object.values(outputs).forEach((tensor) => tensor.dispose());
  const seconds = (performance.now() - start) / 1000;
  const names = instances.map(({ label }) => metadata.config.class_names[label]);
  postMessage({ picture, instances, names, seconds }, [picture]);
}

/** Draw the masks of at least some score, each in a colour, the best on top. */
async function drawOverlay({ score }) {
  const [height, width] = imageSize;
  const overlay = new ImageData(width, height);
  const pixels = new Uint32Array(overlay.data.buffer);
  for (let k = instances.length - 1; k >= 0; k--) {
    if (instances[k].score < score) continue;
    const colour = colourOf(k);
    let position = 0; // runs go down the columns: background, mask, background, ...
    instances[k].segmentation.counts.forEach((length, run) => {
      for (let p = position; run % 2 && p < position + length; p++) {
        pixels[(p % height) * width + Math.floor(p / height)] = colour;
      }
      position += length;
    });
  }
  const bitmap = await createImageBitmap(overlay);
  postMessage({ overlay: bitmap, score }, [bitmap]);
}

/** Half transparent, as alpha, blue, green, red from the highest byte; neighbours in k differ. */
function colourOf(k) {
  const channel = (shift) => Math.round(150 + 105 * Math.cos(2.4 * k + shift));
  return ((144 << 24) | (channel(4.2) << 16) | (channel(2.1) << 8) | channel(0)) >>> 0;
}
