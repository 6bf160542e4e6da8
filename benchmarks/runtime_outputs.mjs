// What onnxruntime-node or, in a browser, onnxruntime-web makes of an .onnx file: run by runtimes.py.
// Files as in runtime_outputs.py: feeds.json, NAME.bin; the outputs are written in the same way.

const ARRAYS = {
  uint8: Uint8Array, int32: Int32Array, int64: BigInt64Array, float32: Float32Array,
};

export async function outputs(ort, model, read) {
  const session = await ort.InferenceSession.create(model);
  const feeds = {};
  for (const [name, spec] of Object.entries(JSON.parse(new TextDecoder().decode(await read("feeds.json"))))) {
    const bytes = await read(`${name}.bin`);
    const data = new ARRAYS[spec.dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    feeds[name] = new ort.Tensor(spec.dtype, data, spec.shape);
  }
  return session.run(feeds);
}

export async function report(ort, model, read, write) {
  let result;
  try {
    const found = await outputs(ort, model, read);
    const specs = {};
    for (const [name, tensor] of Object.entries(found)) {
      await write(`${name}.bin`, new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength));
      specs[name] = { dtype: tensor.type, shape: tensor.dims };
    }
    result = { version: ort.env.versions.node ?? ort.env.versions.web ?? ort.env.versions.common, outputs: specs };
  } catch (error) {
    result = { error: String(error) };
  }
  await write("result.json", new TextEncoder().encode(JSON.stringify(result)));
}

if (typeof process !== "undefined" && process.argv[1]?.endsWith("runtime_outputs.mjs")) {
  const { readFile, writeFile } = await import("node:fs/promises");
  const { createRequire } = await import("node:module");
  const [modules, model, folder] = process.argv.slice(2);
  const ort = createRequire(`${modules}/`)("onnxruntime-node");
  await report(ort, model, (name) => readFile(`${folder}/${name}`), (name, data) => writeFile(`${folder}/${name}`, data));
}
