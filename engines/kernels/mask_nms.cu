// mask_nms.cu - non-maximum suppression by the overlap of masks, and the boxes that masks fill.
// A mask is the cells above 0.5. Four launches: bits, overlaps and what is kept before the mask
// heads of the kept ones, and boxes after them.
//
// mask_bits: one bit per cell, lowest first. One block per mask.
// Traffic: N*C*h*w cells read, an eighth of a byte written for each.
// in   masks T [N*C, cells]
// out  bits u32 [N*C, words], words = ceil(cells / 32)   areas i32 [N*C], -1 where a cell is NaN
//
// mask_ious: of each candidate with the later ones of its class. One block per 16 x 16 pairs.
// Traffic: the bits are read C / 16 times, from L2; N*C*C*4 bytes written.
// in   bits u32 [N, C, words]   areas i32 [N, C]   labels i32 [N, C]
// out  ious f32 [N, C, C]: earlier, later; 0 for all other pairs
//
// mask_nms: what is kept, bit for bit as ops.mask_nms. One block per image, a thread per candidate;
// greedy takes a barrier for each that is kept. Traffic: half of the overlaps, C*C*2 bytes.
// in   ious f32 [N, C, C]   scores f32 [N, C], falling; <= 0 is an empty slot   areas i32 [N, C]
//      order i32 [N, C]: what to call each candidate
// out  keep i32 [N, K], -1 in unused slots   kept_scores f32 [N, K], 0 there, all NaN in an image
//      with a score or a mask that is   count i32 [N]
//      C > 512, which the host refuses, keeps nothing
//
// mask_extents: tight boxes. One block per instance. Traffic: the used masks, once.
// in   masks T [N, K, h, w]   count i32 [N]
// out  boxes f32 [N, K, 4], xyxy in network pixels; zeros where there is nothing

#include <cuda_fp16.h>

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;  // 256 / 32 = 8
constexpr int kTile = 16;              // kernels.PAIR_TILE
constexpr int kMaxCandidates = 512;    // kernels.MAX_DETECTIONS
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kNan = 0x7fc00000;  // the bits of one
constexpr float kLargest = 3.402823466e38f;
enum Kind { kGreedy = 0, kFast = 1, kMatrix = 2 };  // kernels.MASK_NMS

__device__ bool is_inside(float cell) { return cell > 0.5f; }
__device__ bool is_inside(__half cell) { return __half2float(cell) > 0.5f; }
__device__ bool is_nan(float cell) { return !(cell <= kLargest); }  // or infinity
__device__ bool is_nan(__half cell) { return is_nan(__half2float(cell)); }

template <class T>
__device__ void mask_bits(const T* __restrict__ masks, int cells, unsigned* __restrict__ bits,
                          int* __restrict__ areas) {
  __shared__ int found[kWarps];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int words = (cells + 31) / 32;
  const size_t mask = blockIdx.x;
  int area = 0;
  bool broken = false;
  for (int word = warp; word < words; word += kWarps) {
    const int cell = 32 * word + lane;
    const T value = cell < cells ? masks[mask * cells + cell] : T{};
    const bool inside = is_inside(value);
    broken = broken || is_nan(value);
    const unsigned mine = __ballot_sync(kWholeWarp, inside);
    if (lane == 0) bits[mask * words + word] = mine;
    area += __popc(mine);
  }
  if (__ballot_sync(kWholeWarp, broken) != 0) area = -1;
  if (lane == 0) found[warp] = area;
  __syncthreads();
  if (thread > 0) return;
  for (int i = 1; i < kWarps; ++i) area = min(area, found[i]) < 0 ? -1 : area + found[i];
  areas[mask] = area;
}

extern "C" __global__ void __launch_bounds__(kThreads)
    mask_ious(const unsigned* __restrict__ bits, const int* __restrict__ areas,
              const int* __restrict__ labels, int c, int words, float* __restrict__ ious) {
  __shared__ unsigned earlier[kTile][kTile + 1], later[kTile][kTile + 1];  // 2,176 bytes
  const int y = threadIdx.x / kTile, x = threadIdx.x % kTile;
  const int i = blockIdx.y * kTile + y, j = blockIdx.x * kTile + x;
  const int other = blockIdx.x * kTile + y;  // this thread fetches words of i and of it
  const size_t first = static_cast<size_t>(blockIdx.z) * c;
  int overlap = 0;
  for (int start = 0; blockIdx.y <= blockIdx.x && start < words; start += kTile) {
    const int word = start + x;
    earlier[y][x] = i < c && word < words ? bits[(first + i) * words + word] : 0;
    later[y][x] = other < c && word < words ? bits[(first + other) * words + word] : 0;
    __syncthreads();
    for (int at = 0; at < kTile; ++at) overlap += __popc(earlier[y][at] & later[x][at]);
    __syncthreads();
  }
  if (i >= c || j >= c) return;
  const bool rivals = i < j && labels[first + i] == labels[first + j];
  const int both = rivals ? max(areas[first + i] + areas[first + j] - overlap, 1) : 1;
  const float iou = __fdiv_rn(static_cast<float>(overlap), static_cast<float>(both));
  ious[(first + i) * c + j] = rivals ? iou : 0.0f;
}

// The score of the thread's candidate after suppression by those before it, -1 if it is gone.
// `ious` begins at its column; `shared` has a place for each candidate.
__device__ float suppressed(const float* ious, float score, bool alive, int c, int kind,
                            float iou_threshold, float score_threshold, float* shared) {
  const int slot = threadIdx.x, before = min(slot, c);
  if (kind == kGreedy) {
    shared[slot] = alive ? 1.0f : 0.0f;
    __syncthreads();
    for (int i = 0; i < c; ++i) {
      if (shared[i] == 0.0f) continue;  // for all threads: the last to write it passed a barrier
      if (alive && i < before && ious[static_cast<size_t>(i) * c] > iou_threshold) {
        alive = false;
        shared[slot] = 0.0f;
      }
      __syncthreads();
    }
  } else if (kind == kFast) {
    for (int i = 0; alive && i < before; ++i) {
      alive = !(ious[static_cast<size_t>(i) * c] > iou_threshold);
    }
  } else {
    float most = 0.0f, decay = 1.0f;
    for (int i = 0; i < before && slot < c; ++i) {
      most = fmaxf(most, ious[static_cast<size_t>(i) * c]);
    }
    shared[slot] = __fsub_rn(1.0f, most);
    __syncthreads();
    for (int i = 0; alive && i < before; ++i) {
      const float left = __fsub_rn(1.0f, ious[static_cast<size_t>(i) * c]);
      if (shared[i] > 0.0f) decay = fminf(decay, __fdiv_rn(left, shared[i]));
    }
    score = __fmul_rn(score, decay);
    alive = alive && score > score_threshold;
  }
  return alive ? score : -1.0f;
}

extern "C" __global__ void __launch_bounds__(kMaxCandidates)
    mask_nms(const float* __restrict__ ious, const float* __restrict__ scores,
             const int* __restrict__ areas, const int* __restrict__ order, int c, int k, int kind,
             int iou_bits, int score_bits, int score_root, int* __restrict__ keep,
             float* __restrict__ kept_scores, int* __restrict__ count) {
  __shared__ float left[kMaxCandidates], shared[kMaxCandidates];  // 4,096 bytes
  const int slot = threadIdx.x;
  const size_t image = blockIdx.x, first = image * c;
  const int seen = c <= kMaxCandidates ? c : 0;
  const bool real = slot < seen;
  const float score = real ? scores[first + slot] : 0.0f;
  const bool alive = real && score > 0.0f && areas[first + slot] > 0;
  const float mine = suppressed(ious + first * c + slot, score, alive, seen, kind,
                                __int_as_float(iou_bits), __int_as_float(score_bits), shared);
  __syncthreads();  // the loops above have read what is written now
  const bool broken = real && (is_nan(score) || areas[first + slot] < 0);
  shared[slot] = broken ? __int_as_float(kNan) : 0.0f;
  left[slot] = mine;
  __syncthreads();
  int rank = 0, found = 0;
  float flaw = 0.0f;
  for (int i = 0; i < seen; ++i) {
    found += left[i] > 0.0f;
    rank += left[i] > mine || (left[i] == mine && i < slot);
    flaw += shared[i];
  }
  found = min(found, k);
  if (mine > 0.0f && rank < k) {
    keep[image * k + rank] = order[first + slot];
    kept_scores[image * k + rank] = flaw + (score_root ? sqrtf(mine) : mine);
  }
  for (int i = found + slot; i < k; i += kMaxCandidates) {
    keep[image * k + i] = -1;
    kept_scores[image * k + i] = flaw;
  }
  if (slot == 0) count[image] = found;
}

__device__ int least_of_warp(int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = min(value, __shfl_xor_sync(kWholeWarp, value, lanes));
  }
  return value;
}

template <class T>
__device__ void mask_extents(const T* __restrict__ masks, const int* __restrict__ count, int h,
                             int w, int stride, float* __restrict__ boxes) {
  __shared__ int least[4][kWarps];  // of left, top, -right, -bottom; right and bottom beyond
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const size_t instance = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const bool real = static_cast<int>(blockIdx.x) < count[blockIdx.y];
  int box[4] = {w, h, 0, 0};
  for (int row = warp; real && row < h; row += kWarps) {
    const T* cells = masks + (instance * h + row) * w;
    for (int column = lane; column < w; column += 32) {
      if (!is_inside(cells[column])) continue;
      box[0] = min(box[0], column);
      box[1] = min(box[1], row);
      box[2] = min(box[2], -column - 1);
      box[3] = min(box[3], -row - 1);
    }
  }
  for (int side = 0; side < 4; ++side) {
    const int found = least_of_warp(box[side]);
    if (lane == 0) least[side][warp] = found;
  }
  __syncthreads();
  if (thread >= 4) return;
  int found = 0, right = 0;
  for (int i = 0; i < kWarps; ++i) {
    found = i == 0 ? least[thread][0] : min(found, least[thread][i]);
    right = min(right, least[2][i]);
  }
  const int edge = thread < 2 ? found : -found;
  boxes[4 * instance + thread] = right < 0 ? static_cast<float>(stride * edge) : 0.0f;
}

#define FOR_TYPE(suffix, T)                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads)                                       \
      mask_bits_##suffix(const T* __restrict__ masks, int cells, unsigned* __restrict__ bits,  \
                         int* __restrict__ areas) {                                            \
    mask_bits<T>(masks, cells, bits, areas);                                                   \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads)                                       \
      mask_extents_##suffix(const T* __restrict__ masks, const int* __restrict__ count, int h, \
                            int w, int stride, float* __restrict__ boxes) {                    \
    mask_extents<T>(masks, count, h, w, stride, boxes);                                        \
  }
FOR_TYPE(f32, float)
FOR_TYPE(f16, __half)
