// Finds the instances in an image with a file that `condinst export` wrote. In this folder:
//
//     npm ci --ignore-scripts
//     node segment.mjs MODEL.onnx IMAGE.png -o instances.json
//
// The scripts left out download CUDA's libraries, which nothing here uses. Keep ../web beside this
// folder: it has the code that the page there shares.

import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import jpeg from "jpeg-js";
import ort from "onnxruntime-node";
import { PNG } from "pngjs";
import { instancesFromOutputs, networkInput, readMetadata } from "../web/condinst.mjs";

const { values, positionals } = parseArgs({
  options: { output: { type: "string", short: "o", default: "instances.json" } },
  allowPositionals: true,
});
if (positionals.length !== 2) {
  console.error("usage: node segment.mjs MODEL.onnx IMAGE.png [-o instances.json]");
  process.exit(2);
}
const [modelPath, imagePath] = positionals;

/** Pixels of a PNG or JPEG file: {data: [height, width, 4], width, height}. */
async function readImage(path) {
  const bytes = await readFile(path);
  if (bytes[0] === 0x89) return PNG.sync.read(bytes);
  // Other decoders of JPEG differ by a grey level here and there; EXIF rotation is not applied.
  return jpeg.decode(bytes, { useTArray: true });
}

const metadata = readMetadata(await readFile(modelPath));
const session = await ort.InferenceSession.create(modelPath);
const image = await readImage(imagePath);

const start = performance.now();
const input = networkInput(image.data, [image.height, image.width], metadata);
const outputs = await session.run({
  images: new ort.Tensor("uint8", input.images, input.shape),
  image_sizes: new ort.Tensor("int32", input.netSize, [1, 2]),
});
const instances = instancesFromOutputs(outputs, input, metadata);
const seconds = (performance.now() - start) / 1000;

await writeFile(values.output, JSON.stringify(instances));
console.log(`${instances.length} instances in ${seconds.toFixed(2)} s: ${values.output}`);
