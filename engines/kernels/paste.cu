// paste.cu - masks of instances at the size of the original image, one bit per pixel.
// Upsampling by the mask stride, cropping off the padding and resizing are together one two-tap
// interpolation per axis, and a pixel can exceed 0.5 only where a cell it reads does.
//
// mask_boxes: the pixels that read a cell above 0.5, and room for their bits. One block per
// instance. Traffic: count*h*w cells read, 20*K bytes written.
// in   masks T [K, h, w]   count i32 [1]
// out  crops i32 [K, 5] = x, y, width, height, offset   used i32 [1], 0 at the start
// Offsets are handed out in the order in which blocks end; launches that share `used` share `bits`.
// A crop that would pass `capacity` words has offset -1; `used` counts it all the same. Empty masks
// and instances from `count` on are five zeros; one with NaN in it has width, height and offset -1.
// `used` stops at 2^31 - 256, and a crop of more than
// a K-th of that never has a place: if one has none although used <= capacity, the image is too
// large for this kernel.
//
// paste: the bits. A warp makes one word at a time; 32 blocks of 8 warps share an instance.
// Traffic: 4 bytes written per word; a pixel reads 4 cells, mostly from L1.
// in   masks T [K, h, w]   crops i32 [K, 5]
// out  bits u32 [used]: rows of ceil(width / 32) words, lowest bit first, 0 beyond the width

#include <cuda_fp16.h>

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;         // 256 / 32 = 8
constexpr int kFields = 5;                    // of a crop
constexpr unsigned kMostWords = 0x7fffff00u;  // 2^31 - 256: `paste` counts 255 past its last word
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kBroken = -1;  // less than any column

__device__ float probability(float cell) { return cell; }
__device__ float probability(__half cell) { return __half2float(cell); }

// Original pixels on mask cells, along one axis; rounded step by step as postprocess._axis does it.
struct Axis {
  int cells, outputs;
  float scale, last_pixel, shift, stride;
};

struct Taps {
  int low, high;  // cells
  float part;     // of `high`
};

__device__ Axis axis_of(int cells, int stride, int net, int outputs) {
  const float scale = __fdiv_rn(static_cast<float>(net), static_cast<float>(outputs));
  return {cells, outputs, scale, net - 1.0f, 1.0f * (stride / 2), 1.0f * stride};
}

__device__ Taps taps_of(const Axis& axis, int output) {
  const float middle = __fadd_rn(static_cast<float>(output), 0.5f);
  const float pixel = __fsub_rn(__fmul_rn(middle, axis.scale), 0.5f);
  const float inside = fminf(fmaxf(pixel, 0.0f), axis.last_pixel);
  const float place = __fdiv_rn(__fsub_rn(inside, axis.shift), axis.stride);
  const float cell = fminf(fmaxf(place, 0.0f), axis.cells - 1.0f);
  const int low = static_cast<int>(cell);
  return {low, min(low + 1, axis.cells - 1), __fsub_rn(cell, static_cast<float>(low))};
}

// The first output that reads `cell` or a later one, or with `beyond` only later ones. `outputs`
// if there is none. Taps never go back, so the interval can be halved.
__device__ int first_output(const Axis& axis, int cell, bool beyond) {
  int low = 0, high = axis.outputs;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const Taps taps = taps_of(axis, middle);
    if (beyond ? taps.low > cell : taps.high >= cell) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__device__ int least_of_warp(int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = min(value, __shfl_xor_sync(kWholeWarp, value, lanes));
  }
  return value;
}

template <class T>
__device__ void mask_boxes(const T* __restrict__ masks, const int* __restrict__ count, int h, int w,
                           int stride, int net_h, int net_w, int image_h, int image_w, int capacity,
                           int* __restrict__ crops, int* __restrict__ used) {
  __shared__ int least[4][kWarps];  // of left, -right, top, -bottom of the cells above 0.5
  __shared__ int edges[4];          // left, right, top, bottom in pixels, right and bottom beyond
  const int instance = blockIdx.x, thread = threadIdx.x;
  const int lane = thread % 32, warp = thread / 32;
  const bool real = instance < count[0];

  int box[4] = {w, 0, h, 0};
  const T* mask = masks + static_cast<long long>(instance) * h * w;
  for (int row = warp; real && row < h; row += kWarps) {
    const T* cells = mask + static_cast<long long>(row) * w;
#pragma unroll 4
    for (int column = lane; column < w; column += 32) {
      const float value = probability(cells[column]);
      if (!(value <= 0.5f)) {  // greater, or NaN
        box[0] = min(box[0], value > 0.5f ? column : kBroken);
        box[1] = min(box[1], -column);
        box[2] = min(box[2], row);
        box[3] = min(box[3], -row);
      }
    }
  }
  for (int side = 0; side < 4; ++side) {
    const int found = least_of_warp(box[side]);
    if (lane == 0) least[side][warp] = found;
  }
  __syncthreads();
  bool broken = false;
  if (thread < 4) {
    int found = least[thread][0];
    for (int i = 1; i < kWarps; ++i) found = min(found, least[thread][i]);
    broken = thread == 0 && found == kBroken;
    const Axis axis =
        thread < 2 ? axis_of(w, stride, net_w, image_w) : axis_of(h, stride, net_h, image_h);
    const bool beyond = thread % 2 == 1;
    edges[thread] = first_output(axis, beyond ? -found : found, beyond);
  }
  __syncthreads();
  if (thread > 0) return;
  int* crop = crops + static_cast<long long>(kFields) * instance;
  if (broken) {
    for (int i = 0; i < kFields; ++i) crop[i] = i < 2 ? 0 : -1;
    return;
  }
  const int width = edges[1] - edges[0], height = edges[3] - edges[2];
  if (!real || width <= 0 || height <= 0) {
    for (int i = 0; i < kFields; ++i) crop[i] = 0;
    return;
  }
  const long long words = static_cast<long long>(height) * ((width + 31) / 32);
  // Less than 2^31 before, and the blocks add less than 2^31: it can't wrap before it is cut.
  const long long most = kMostWords / gridDim.x;
  const unsigned counted = static_cast<unsigned>(min(words, most));
  const unsigned offset = atomicAdd(reinterpret_cast<unsigned*>(used), counted);
  const unsigned end = offset + counted;
  if (end > kMostWords) atomicMin(reinterpret_cast<unsigned*>(used), kMostWords);
  crop[0] = edges[0];
  crop[1] = edges[2];
  crop[2] = width;
  crop[3] = height;
  crop[4] = words <= most && end <= min(static_cast<unsigned>(capacity), kMostWords)
                ? static_cast<int>(offset)
                : -1;
}

// Fused as the matrix products of postprocess.paste are, on CPUs that can.
__device__ float between(float low, float high, float part) {
  return __fmaf_rn(high, part, __fmul_rn(low, __fsub_rn(1.0f, part)));
}

template <class T>
__device__ void paste(const T* __restrict__ masks, const int* __restrict__ crops, int h, int w,
                      int stride, int net_h, int net_w, int image_h, int image_w,
                      unsigned* __restrict__ bits) {
  const int instance = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int* crop = crops + static_cast<long long>(kFields) * instance;
  const int left = crop[0], top = crop[1], width = crop[2], height = crop[3], offset = crop[4];
  if (offset < 0) return;
  const Axis rows = axis_of(h, stride, net_h, image_h);
  const Axis columns = axis_of(w, stride, net_w, image_w);
  const T* mask = masks + static_cast<long long>(instance) * h * w;
  const int per_row = (width + 31) / 32, words = height * per_row;
  for (int word = blockIdx.x * kWarps + warp; word < words; word += gridDim.x * kWarps) {
    const int row = word / per_row, column = 32 * (word % per_row) + lane;
    bool inside = false;
    if (column < width) {
      const Taps down = taps_of(rows, top + row), across = taps_of(columns, left + column);
      const T* upper = mask + static_cast<long long>(down.low) * w;
      const T* lower = mask + static_cast<long long>(down.high) * w;
      const float above =
          between(probability(upper[across.low]), probability(upper[across.high]), across.part);
      const float below =
          between(probability(lower[across.low]), probability(lower[across.high]), across.part);
      inside = between(above, below, down.part) > 0.5f;
    }
    const unsigned found = __ballot_sync(kWholeWarp, inside);
    if (lane == 0) bits[offset + word] = found;
  }
}

#define KERNELS(name, T)                                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads)                                           \
      mask_boxes_##name(const T* __restrict__ masks, const int* __restrict__ count, int h, int w,  \
                        int stride, int net_h, int net_w, int image_h, int image_w, int capacity,  \
                        int* __restrict__ crops, int* __restrict__ used) {                         \
    mask_boxes(masks, count, h, w, stride, net_h, net_w, image_h, image_w, capacity, crops, used); \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(kThreads) paste_##name(                             \
      const T* __restrict__ masks, const int* __restrict__ crops, int h, int w, int stride,        \
      int net_h, int net_w, int image_h, int image_w, unsigned* __restrict__ bits) {               \
    paste(masks, crops, h, w, stride, net_h, net_w, image_h, image_w, bits);                       \
  }

KERNELS(f32, float)
KERNELS(f16, __half)
