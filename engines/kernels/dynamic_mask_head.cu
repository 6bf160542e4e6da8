// dynamic_mask_head.cu - per-instance 1x1 convolutions on the mask features, upsampled, sigmoid.
// One block handles one instance and a tile of 8x32 cells: the 169 parameters are read once into
// shared memory and used by every cell of the tile. The logits of the tile, and of the cells around
// it that upsampling needs, go to shared memory too; then a thread writes f*f outputs of a cell.
// Traffic: f*f*(2 or 4) bytes written per instance and cell, f = factor; C*(2 or 4) read, mostly
// from L2, since every instance reads the same features.
// Work per instance and cell: 152 multiply-adds in the papers' network (8x10 + 8x8 + 8), times 1.16
// for the cells around the tile if f = 2, 1.33 if f = 4; f*f exponentials and divisions.
//
// in   features [N, C, h, w]   params [N, K, P]: weights of all layers (out x in), then all biases
//      centres [N, K, 2], (x, y) in network pixels   sizes [N, K]   count int32 [N]
//      scalars: depth 1..4, width and channels up to 16, factor 1, 2 or 4
// out  probabilities [N, K, f*h, f*w], 0 in slots from `count` on; NaN in a tile whose parameters or
//      features are not finite, which fmaxf would turn into numbers

#include <cuda_fp16.h>

constexpr int kRows = 8, kColumns = 32;                   // of a tile, in cells
constexpr int kThreads = kRows * kColumns;                // 256
constexpr int kTileCells = (kRows + 2) * (kColumns + 2);  // 340, with one more all around
constexpr int kCells = 2;         // of a thread: a weight read from shared memory serves both
constexpr int kMiddle = 2;        // layers between the first and the last, at most: depth 4
constexpr int kRelative = 1;      // `coordinates`: (centre - pixel) / size; 0 none, 2 pixel / 512
constexpr int kNan = 0x7fc00000;  // the bits of one
constexpr float kLargest = 3.402823466e38f;
constexpr float kAbsoluteScale = 512.0f;  // ops.dynamic_mask_head.ABSOLUTE_SCALE
static_assert(kTileCells <= kCells * kThreads, "every cell of the tile has a thread");

__device__ float as_float(float value) { return value; }
__device__ float as_float(__half value) { return __half2float(value); }
__device__ void store(float* at, float value) { *at = value; }
__device__ void store(__half* at, float value) { *at = __float2half_rn(value); }

// Set `broken` if `value` is NaN or infinite.
__device__ void note(float value, int* broken) {
  if (!(fabsf(value) <= kLargest)) atomicOr(broken, 1);
}

// Weights [in][out], then a row of biases. Zero past the real channels: loops have fixed lengths.
template <int kIn, int kOut>
struct Layer {
  alignas(16) float rows[kIn + 1][kOut];
};

template <int kSize>
struct Head {
  Layer<kSize + 2, kSize> first;
  Layer<kSize, kSize> middle[kMiddle];
  Layer<kSize, 1> last;
};

template <int kFactor, typename T>
struct alignas(kFactor * sizeof(T)) Outputs {  // side by side, written at once where aligned
  T values[kFactor];
};

// Input i of `to` is input i + rotation of the parameters: coordinates, if any, come first there
// and last here, so that a feature has the same place with and without them.
template <int kIn, int kOut, typename T>
__device__ void stage(const T* weights, const T* biases, int ins, int outs, int rotation,
                      Layer<kIn, kOut>& to, int* broken) {
#pragma unroll 1
  for (int i = threadIdx.x; i < (kIn + 1) * kOut; i += kThreads) {
    const int row = i / kOut, out = i % kOut, in = (row + rotation) % kIn;
    float value = 0.0f;
    if (out < outs && row < kIn && in < ins) value = as_float(weights[out * ins + in]);
    if (out < outs && row == kIn) value = as_float(biases[out]);
    to.rows[row][out] = value;
    note(value, broken);
  }
}

// The parameters of `instance`. A head of depth 1 has a first layer only, with one output.
template <int kSize, typename T>
__device__ void stage_head(const T* params, size_t instance, int places, int features, int depth,
                           int width, Head<kSize>& head, int* broken) {
  const int inputs = places + features, outs = depth > 1 ? width : 1;
  const int between = depth > 2 ? depth - 2 : 0, last = depth > 1 ? width : 0;
  const int weight_count = outs * inputs + between * width * width + last;
  const int bias_count = (depth - 1) * width + 1;
  const T* weights = params + instance * (weight_count + bias_count);
  const T* biases = weights + weight_count;
  stage(weights, biases, inputs, outs, places, head.first, broken);
  weights += outs * inputs;
  biases += outs;
  for (int i = 0; i < between; ++i) {
    stage(weights, biases, width, width, 0, head.middle[i], broken);
    weights += width * width;
    biases += width;
  }
  if (depth > 1) stage(weights, biases, width, 1, 0, head.last, broken);
}

template <int kIn, int kOut>
__device__ void apply(const Layer<kIn, kOut>& layer, const float (&in)[kCells][kIn],
                      float (&out)[kCells][kOut]) {
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
    for (int c = 0; c < kCells; ++c) out[c][o] = layer.rows[kIn][o];
  }
#pragma unroll
  for (int i = 0; i < kIn; ++i) {
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      for (int c = 0; c < kCells; ++c) out[c][o] += layer.rows[i][o] * in[c][i];
    }
  }
}

template <int kSize>
__device__ void rectify(float (&values)[kCells][kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    for (int c = 0; c < kCells; ++c) values[c][i] = fmaxf(values[c][i], 0.0f);
  }
}

template <int kSize>
__device__ void logits_of(const Head<kSize>& head, int depth, const float (&in)[kCells][kSize + 2],
                          float (&logits)[kCells][1], int* broken) {
  float x[kCells][kSize], next[kCells][kSize];
  apply(head.first, in, x);
  for (int c = 0; c < kCells; ++c) note(x[c][0], broken);  // every feature is in it
#pragma unroll 1
  for (int layer = 0; layer < depth - 2; ++layer) {
    rectify(x);
    apply(head.middle[layer], x, next);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      for (int c = 0; c < kCells; ++c) x[c][i] = next[c][i];
    }
  }
  for (int c = 0; c < kCells; ++c) logits[c][0] = x[c][0];
  if (depth == 1) return;
  rectify(x);
  apply(head.last, x, logits);
}

// The value at output `part` of a cell, (part - kFactor / 2) / kFactor cells from the cell itself,
// given its own and those of the cells before and after it.
template <int kFactor>
__device__ float between(int part, float before, float here, float after) {
  const float away = (part - kFactor / 2) / static_cast<float>(kFactor);
  return here + (away < 0.0f ? -away * (before - here) : away * (after - here));
}

// The outputs of one cell, or zeros. Around it in the tile of logits lie other cells wherever the
// outputs depend on them: on the left and above if kFactor > 1, on the other sides too if > 2.
template <int kFactor, typename T>
__device__ void write_cell(bool used, bool broken, const float* logits, int columns, T* at,
                           size_t pitch) {
  constexpr int kBefore = kFactor > 1, kAfter = kFactor > 2;
  float probabilities[kFactor][kFactor] = {}, beside[3][kFactor] = {};
  if (used) {
#pragma unroll
    for (int row = -kBefore; row <= kAfter; ++row) {
      const float* cell = logits + row * columns;
      for (int j = 0; j < kFactor; ++j) {
        beside[row + 1][j] = between<kFactor>(j, cell[-kBefore], cell[0], cell[kAfter]);
      }
    }
#pragma unroll
    for (int i = 0; i < kFactor; ++i) {
      for (int j = 0; j < kFactor; ++j) {
        const float logit = between<kFactor>(i, beside[0][j], beside[1][j], beside[2][j]);
        probabilities[i][j] = __fdividef(1.0f, 1.0f + expf(-logit));
      }
    }
  }
  // Nothing promises where TensorRT puts an output. The answer is the same for a whole launch.
  const bool aligned = reinterpret_cast<size_t>(at) % sizeof(Outputs<kFactor, T>) == 0;
#pragma unroll
  for (int i = 0; i < kFactor; ++i) {
    Outputs<kFactor, T> row;
    for (int j = 0; j < kFactor; ++j) {
      store(&row.values[j], broken ? __int_as_float(kNan) : probabilities[i][j]);
    }
    if (aligned) {
      *reinterpret_cast<Outputs<kFactor, T>*>(at + i * pitch) = row;
    } else {
      for (int j = 0; j < kFactor; ++j) at[i * pitch + j] = row.values[j];
    }
  }
}

template <int kSize, typename T>
__device__ void mask_head(const T* features, const T* params, const float* centres,
                          const float* sizes, const int* count, int k, int h, int w, int stride,
                          int factor, int depth, int width, int channels, int coordinates,
                          int use_features, T* masks) {
  __shared__ Head<kSize> head;
  __shared__ float tile[kTileCells];  // logits of the cells below, row by row
  __shared__ int broken;
  const size_t instance = blockIdx.x, image = instance / k, area = static_cast<size_t>(h) * w;
  const bool used = static_cast<int>(instance - image * k) < count[image];  // by the whole block
  const int thread = threadIdx.x, x0 = blockIdx.z * kColumns, y0 = blockIdx.y * kRows;
  const int halo = factor > 1, far_halo = factor > 2;  // left and above; right and below
  const int columns = halo + min(kColumns, w - x0) + far_halo;
  const int rows = halo + min(kRows, h - y0) + far_halo;
  const int places = coordinates ? 2 : 0, read = use_features ? channels : 0;

  if (thread == 0) broken = 0;
  __syncthreads();
  if (used) stage_head(params, instance, places, read, depth, width, head, &broken);
  __syncthreads();
  const int step = (rows * columns + kCells - 1) / kCells;  // from one cell of a thread to the next
  if (used && thread < step) {
    float in[kCells][kSize + 2], logits[kCells][1];
    int column[kCells], row[kCells];
    for (int c = 0; c < kCells; ++c) {
      const int cell = thread + c * step;  // past the last one: computed, not kept
      column[c] = min(max(x0 - halo + cell % columns, 0), w - 1);  // the map's border is repeated
      row[c] = min(max(y0 - halo + cell / columns, 0), h - 1);
    }
    const T* plane = features + image * channels * area;
#pragma unroll
    for (int i = 0; i < kSize + 2; ++i, plane += area) {
      for (int c = 0; c < kCells; ++c) {
        in[c][i] = i < read ? as_float(plane[row[c] * w + column[c]]) : 0.0f;
      }
    }
    if (places) {
      const bool relative = coordinates == kRelative;
      const float scale = relative ? 1.0f / sizes[instance] : -1.0f / kAbsoluteScale;
      const float centre_x = relative ? centres[2 * instance] : 0.0f;
      const float centre_y = relative ? centres[2 * instance + 1] : 0.0f;
      for (int c = 0; c < kCells; ++c) {
        in[c][kSize] = (centre_x - (stride * column[c] + stride / 2)) * scale;
        in[c][kSize + 1] = (centre_y - (stride * row[c] + stride / 2)) * scale;
      }
    }
    logits_of(head, depth, in, logits, &broken);
    for (int c = 0; c < kCells; ++c) {
      if (thread + c * step < rows * columns) tile[thread + c * step] = logits[c][0];
    }
  }
  __syncthreads();

  const int row = thread / kColumns, column = thread % kColumns;
  if (y0 + row >= h || x0 + column >= w) return;
  const float* cell = tile + (halo + row) * columns + halo + column;
  const size_t pitch = static_cast<size_t>(factor) * w;
  T* at = masks + factor * (instance * factor * area + (y0 + row) * pitch + x0 + column);
  if (factor == 1) write_cell<1>(used, broken, cell, columns, at, pitch);
  if (factor == 2) write_cell<2>(used, broken, cell, columns, at, pitch);
  if (factor == 4) write_cell<4>(used, broken, cell, columns, at, pitch);
}

// At least 32 / kSize blocks in a multiprocessor: 64 registers a thread for 8, 128 for 16.
#define DYNAMIC_MASK_HEAD(name, kSize, T)                                                         \
  extern "C" __global__ void __launch_bounds__(kThreads, 32 / kSize)                              \
      name(const T* __restrict__ features, const T* __restrict__ params,                          \
           const float* __restrict__ centres, const float* __restrict__ sizes,                    \
           const int* __restrict__ count, int k, int h, int w, int stride, int factor, int depth, \
           int width, int channels, int coordinates, int use_features, T* __restrict__ masks) {   \
    mask_head<kSize>(features, params, centres, sizes, count, k, h, w, stride, factor, depth,     \
                     width, channels, coordinates, use_features, masks);                          \
  }
DYNAMIC_MASK_HEAD(dynamic_mask_head_8_f32, 8, float)
DYNAMIC_MASK_HEAD(dynamic_mask_head_8_f16, 8, __half)
DYNAMIC_MASK_HEAD(dynamic_mask_head_16_f32, 16, float)
DYNAMIC_MASK_HEAD(dynamic_mask_head_16_f16, 16, __half)
