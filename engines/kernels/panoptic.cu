// panoptic.cu - the owner of every pixel of an image: instances in front, stuff behind them.
// Owners are 0 for void, 1 to K for the instance in slot 0 to K - 1, K + c for stuff class c.
//
// owners_of_things: what `paste` packed, best instance first. One that loses more than its share to
// those before it is dropped, so each waits for the last: one block walks through them, a thread
// has every 1024th word. Traffic: 12 bytes per word of each instance, mostly from L2, and 2 per
// pixel owned.
// in   bits u32   crops i32 [K, 5] as of `mask_boxes`   count i32 [1]   boxes f32 [K, 4] in network
//      pixels   scores f32 [K]
// out  taken u32 [H, ceil(W / 32) + 1], one bit per owned pixel   owners u16 [H, W]; both 0 before
//
// add_stuff: every free pixel gets the first of its largest classes, 0 stays. Upsampling by 4,
// cropping off the padding and resizing are together one three-tap interpolation per axis. A block
// handles 8 x 32 pixels. Traffic: 4 bytes per pixel; a free one reads 9 cells of each class, nearly
// all from L1.
// in   semantic T [C, h, w], C at most 255
// out  areas i32 [C], 0 before: the pixels of each class but 0   owners u16 [H, W]
//
// drop_small_stuff: classes of fewer than `limit` pixels become void. Traffic: 2 to 4 bytes each.
// in   areas i32 [C]
// out  owners u16 [H, W]

#include <cuda_fp16.h>

constexpr int kThreads = 1024;  // of owners_of_things
constexpr int kRows = 8, kColumns = 32;
constexpr int kTile = kRows * kColumns;  // 8 * 32 = 256
constexpr int kFields = 5;               // of a crop
constexpr int kTaps = 3;
constexpr int kStride = 4;  // network pixels per cell of the logits
constexpr long long kMillion = 1000000;
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ int sum_of_warp(int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, lanes);
  }
  return value;
}

// Whether an interval is empty once it is scaled and clipped to the image.
__device__ bool vanishes(float low, float high, float ratio, int side) {
  const float limit = static_cast<float>(side);
  return !(fminf(fmaxf(__fmul_rn(low, ratio), 0.0f), limit) <
           fminf(fmaxf(__fmul_rn(high, ratio), 0.0f), limit));
}

// The 32 pixels of a crop's word lie in two words of the image.
struct Place {
  unsigned* words;
  int shift;
  long long pixel;  // the first
};

__device__ Place place_of(const int* crop, int word, int per_row, int width, unsigned* taken) {
  const int x = crop[0] + 32 * (word % per_row), y = crop[1] + word / per_row;
  const long long pitch = (width + 31) / 32 + 1;
  return {taken + y * pitch + x / 32, x % 32, static_cast<long long>(y) * width + x};
}

__device__ unsigned taken_of(const Place& place) {
  const unsigned long long both =
      static_cast<unsigned long long>(place.words[1]) << 32 | place.words[0];
  return static_cast<unsigned>(both >> place.shift);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    owners_of_things(const unsigned* __restrict__ bits, const int* __restrict__ crops,
                     const int* __restrict__ count, const float* __restrict__ boxes,
                     const float* __restrict__ scores, int k, int image_h, int image_w, int ratio_x,
                     int ratio_y, int threshold, int share, int check_boxes, unsigned* taken,
                     unsigned short* __restrict__ owners) {
  __shared__ int sums[2][2];  // of this instance and the next: its area, and what it lost
  const int thread = threadIdx.x;
  if (thread < 4) sums[thread / 2][thread % 2] = 0;
  __syncthreads();
  int turn = 0;
  for (int slot = 0; slot < min(count[0], k); ++slot) {
    const int* crop = crops + static_cast<long long>(kFields) * slot;
    const float* box = boxes + 4ll * slot;
    const int per_row = (crop[2] + 31) / 32, words = crop[3] * per_row;
    const bool outside = vanishes(box[0], box[2], __int_as_float(ratio_x), image_w) ||
                         vanishes(box[1], box[3], __int_as_float(ratio_y), image_h);
    if (words == 0 || crop[4] < 0 || !(scores[slot] >= __int_as_float(threshold)) ||
        (check_boxes && outside)) {
      continue;  // the whole block does
    }
    const unsigned* mask = bits + crop[4];
    int area = 0, lost = 0;
    for (int word = thread; word < words; word += kThreads) {
      const unsigned inside = mask[word];
      area += __popc(inside);
      lost += __popc(inside & taken_of(place_of(crop, word, per_row, image_w, taken)));
    }
    area = sum_of_warp(area);
    lost = sum_of_warp(lost);
    if (thread % 32 == 0) {
      atomicAdd(&sums[turn][0], area);
      atomicAdd(&sums[turn][1], lost);
    }
    __syncthreads();
    const bool stays = sums[turn][1] * kMillion <= static_cast<long long>(share) * sums[turn][0];
    turn = 1 - turn;
    if (thread < 2) sums[turn][thread] = 0;
    for (int word = thread; stays && word < words; word += kThreads) {
      const Place place = place_of(crop, word, per_row, image_w, taken);
      unsigned free = mask[word] & ~taken_of(place);  // others of this instance set other bits
      const unsigned long long both = static_cast<unsigned long long>(free) << place.shift;
      atomicOr(place.words, static_cast<unsigned>(both));
      atomicOr(place.words + 1, static_cast<unsigned>(both >> 32));
      for (; free != 0; free &= free - 1) {
        owners[place.pixel + __ffs(free) - 1] = static_cast<unsigned short>(slot + 1);
      }
    }
    __syncthreads();
  }
}

// The cells that a pixel reads along one axis; those past the last have no weight.
struct Taps {
  int cells[kTaps];
  float weights[kTaps];
};

struct Between {
  int low, high;
  float part;  // of `high`
};

__device__ Between between_of(int output, float scale, int inputs) {
  const float middle = __fadd_rn(static_cast<float>(output), 0.5f);
  const float place = __fsub_rn(__fmul_rn(middle, scale), 0.5f);
  const float inside = fminf(fmaxf(place, 0.0f), inputs - 1.0f);
  const int low = static_cast<int>(inside);
  return {low, min(low + 1, inputs - 1), __fsub_rn(inside, static_cast<float>(low))};
}

// Rounded step by step as merge._axis does it.
__device__ Taps taps_of(int output, int cells, int net, int outputs) {
  const float scale = __fdiv_rn(static_cast<float>(net), static_cast<float>(outputs));
  const Between pixels = between_of(output, scale, net);
  Taps taps = {};
  int first = 0;
  for (int i = 0; i < 2; ++i) {
    const int pixel = i == 0 ? pixels.low : pixels.high;
    const float weight = i == 0 ? __fsub_rn(1.0f, pixels.part) : pixels.part;
    const Between read = between_of(pixel, 1.0f / kStride, cells);
    if (i == 0) first = read.low;
    const float low = __fmul_rn(weight, __fsub_rn(1.0f, read.part));
    const float high = __fmul_rn(weight, read.part);
    for (int tap = 0; tap < kTaps; ++tap) {  // indices of registers must be constants
      if (read.low - first == tap) taps.weights[tap] = __fadd_rn(taps.weights[tap], low);
      if (read.high - first == tap) taps.weights[tap] = __fadd_rn(taps.weights[tap], high);
    }
  }
  for (int tap = 0; tap < kTaps; ++tap) taps.cells[tap] = min(first + tap, cells - 1);
  return taps;
}

__device__ float logit(float cell) { return cell; }
__device__ float logit(__half cell) { return __half2float(cell); }

template <class T>
__device__ int best_class(const T* __restrict__ semantic, int classes, int h, int w,
                          const Taps& down, const Taps& across) {
  int cells[kTaps * kTaps];
  float weights[kTaps * kTaps];
#pragma unroll
  for (int i = 0; i < kTaps * kTaps; ++i) {
    cells[i] = down.cells[i / kTaps] * w + across.cells[i % kTaps];
    weights[i] = down.weights[i / kTaps] * across.weights[i % kTaps];
  }
  int best = 0;
  float largest = 0.0f;
  for (int c = 0; c < classes; ++c) {
    const T* map = semantic + static_cast<long long>(c) * h * w;
    float value = 0.0f;
#pragma unroll
    for (int i = 0; i < kTaps * kTaps; ++i) value += weights[i] * logit(map[cells[i]]);
    if (c == 0 || value > largest) {
      best = c;
      largest = value;
    }
  }
  return best;
}

template <class T>
__device__ void add_stuff(const T* __restrict__ semantic, int classes, int h, int w, int net_h,
                          int net_w, int image_h, int image_w, int k, int* __restrict__ areas,
                          unsigned short* __restrict__ owners) {
  __shared__ int found[kTile];  // pixels of each class in this tile
  const int thread = threadIdx.x;
  const int y = blockIdx.y * kRows + thread / kColumns;
  const int x = blockIdx.x * kColumns + thread % kColumns;
  found[thread] = 0;
  __syncthreads();
  unsigned short* owner = owners + static_cast<long long>(y) * image_w + x;
  if (y < image_h && x < image_w && *owner == 0) {
    const Taps down = taps_of(y, h, net_h, image_h), across = taps_of(x, w, net_w, image_w);
    const int best = best_class(semantic, classes, h, w, down, across);
    if (best > 0) {
      *owner = static_cast<unsigned short>(k + best);
      atomicAdd(&found[best], 1);
    }
  }
  __syncthreads();
  if (found[thread] > 0) atomicAdd(&areas[thread], found[thread]);
}

#define ADD_STUFF(name, T)                                                                   \
  extern "C" __global__ void __launch_bounds__(kTile)                                        \
      add_stuff_##name(const T* __restrict__ semantic, int classes, int h, int w, int net_h, \
                       int net_w, int image_h, int image_w, int k, int* __restrict__ areas,  \
                       unsigned short* __restrict__ owners) {                                \
    add_stuff(semantic, classes, h, w, net_h, net_w, image_h, image_w, k, areas, owners);    \
  }

ADD_STUFF(f32, float)
ADD_STUFF(f16, __half)

extern "C" __global__ void __launch_bounds__(kTile)
    drop_small_stuff(const int* __restrict__ areas, int pixels, int k, int limit,
                     unsigned short* __restrict__ owners) {
  const long long pixel = static_cast<long long>(blockIdx.x) * kTile + threadIdx.x;
  if (pixel >= pixels) return;
  const int stuff = owners[pixel] - k;
  if (stuff > 0 && areas[stuff] < limit) owners[pixel] = 0;
}
