// Resizing to the grey level as condinst-infer does it: a canvas smooths in a way of its own.

/**
 * Resize an image: to a smaller size as Pillow does it (antialiased), to a larger one as OpenCV.
 * @param {Uint8Array} pixels [height, width, 3]
 * @param {number[]} size [height, width]
 * @param {number[]} newSize [newHeight, newWidth]
 * @returns {Int32Array} [newHeight, newWidth, 3], from 0 to 255
 */
export function resize(pixels, [height, width], [newHeight, newWidth]) {
  // Pillow's weights have 22 bits, and each pass rounds. OpenCV's have 11: they stay in the first
  // pass, and the second drops bits at three places.
  const shrinks = newHeight < height || newWidth < width;
  const [taps, across, down] = shrinks
    ? [antialiasedTaps, [0, 0, 22], [0, 0, 22]]
    : [linearTaps, [0, 0, 0], [4, 16, 2]];
  if (shrinks && height - newHeight > Math.max(0, 2 * (width - newWidth))) { // rows first, since
    const turned = turn(pixels, height, width); // Pillow 13: up to one grey level apart
    const tall = resizeAxis(turned, width, taps(height, newHeight), down);
    return turn(resizeAxis(tall, newHeight, taps(width, newWidth), across), newWidth, newHeight);
  }
  const wide = resizeAxis(pixels, height, taps(width, newWidth), across);
  return resizeAxis(wide, newWidth, taps(height, newHeight), down);
}

/**
 * Resize [lines, inputs, 3] along its second axis, and swap both: [outputs, lines, 3].
 * The bits to drop are those of a value, of a weighted one, and of the sum, which is rounded.
 */
function resizeAxis(pixels, lines, taps, [ofValue, ofProduct, ofSum]) {
  const inputs = pixels.length / lines / 3;
  const result = new Int32Array(taps.length * lines * 3);
  taps.forEach(({ reads, weights }, output) => {
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < 3; c++) {
        let sum = ofSum ? 1 << (ofSum - 1) : 0;
        for (let k = 0; k < reads.length; k++) {
          const value = pixels[3 * (line * inputs + reads[k]) + c];
          sum += (weights[k] * (value >> ofValue)) >> ofProduct;
        }
        result[3 * (output * lines + line) + c] = sum >> ofSum;
      }
    }
  });
  return result;
}

/** Swap the first two axes: [lines, inputs, 3] becomes [inputs, lines, 3]. */
function turn(pixels, lines, inputs) {
  const taps = Array.from({ length: inputs }, (_, i) => ({ reads: [i], weights: [1] }));
  return resizeAxis(pixels, lines, taps, [0, 0, 0]);
}

/** Which inputs make each output, with weights that fall to both sides: antialiased bilinear. */
function antialiasedTaps(inputs, outputs) {
  const scale = inputs / outputs;
  const reach = Math.max(scale, 1);
  return Array.from({ length: outputs }, (_, output) => {
    const centre = (output + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const stop = Math.min(inputs, Math.trunc(centre + reach + 0.5));
    const reads = Array.from({ length: stop - first }, (_, k) => first + k);
    const shares = reads.map((i) => Math.max(0, 1 - Math.abs((i - centre + 0.5) * (1 / reach))));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = shares.map((share) => Math.floor((share / total) * (1 << 22) + 0.5));
    return { reads, weights };
  });
}

/** Which two inputs make each output: half-pixel bilinear. */
function linearTaps(inputs, outputs) {
  const scale = 1 / (outputs / inputs);
  const toEven = (value) => value + 2 ** 52 - 2 ** 52; // the nearest whole number, halves to even
  return Array.from({ length: outputs }, (_, output) => {
    const place = Math.fround((output + 0.5) * scale - 0.5);
    const low = Math.floor(place);
    const part = Math.fround(place - low);
    const weights = [Math.fround(1 - part), part].map((weight) => toEven(2048 * weight));
    return { reads: [Math.max(low, 0), Math.min(low + 1, inputs - 1)], weights };
  });
}
