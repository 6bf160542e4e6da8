// select.cu - what NMS kept, gathered from the candidates and from the map of parameters.
// One block handles one slot of one image: a thread copies every 128th parameter, the first thread
// the rest. Slots from `count` on become zeros, labels -1. A network that is broken has no candidate
// but NaN or infinity, and then all scores are NaN.
// Traffic: K*P*32 bytes read, a whole sector for each parameter, because those of one location lie
// A elements apart; K*P*(2 or 4) bytes written. No arithmetic to speak of.
//
// in   keep int32 [N, K]   count int32 [N]   candidate_boxes [N, M, 4]   candidate_scores [N, M]
//      candidate_labels int32 [N, M]   candidate_locations int32 [N, M], below A
//      params_map [N, P, A]   levels int32 [L, 4]: first location, columns, stride in pixels, size
//      of interest; the first starts at 0
// out  boxes [N, K, 4]   scores [N, K]   labels int32 [N, K]   params [N, K, P]
//      centres [N, K, 2], (x, y) in network pixels   sizes [N, K]

#include <cuda_fp16.h>

constexpr int kThreads = 128;

// The level of a location: the last one that does not begin after it.
__device__ int4 level_of(const int* levels, int number, int location) {
  int at = 0;
  while (at + 1 < number && levels[4 * (at + 1)] <= location) ++at;
  return make_int4(levels[4 * at], levels[4 * at + 1], levels[4 * at + 2], levels[4 * at + 3]);
}

template <typename T>
__device__ void select(const int* keep, const int* count, const float* candidate_boxes,
                       const float* candidate_scores, const int* candidate_labels,
                       const int* candidate_locations, const T* params_map, const int* levels,
                       int k, int m, int p, int a, int level_count, int score_root, float* boxes,
                       float* scores, int* labels, T* params, float* centres, float* sizes) {
  const size_t image = blockIdx.y, out = image * k + blockIdx.x;
  const bool used = static_cast<int>(blockIdx.x) < count[image];
  const size_t candidate = image * m + (used ? keep[out] : 0);
  const int location = used ? candidate_locations[candidate] : 0;
  for (int i = threadIdx.x; i < p; i += kThreads) {
    params[out * p + i] = used ? params_map[(image * p + i) * a + location] : T{};
  }
  if (threadIdx.x != 0) return;
  for (int i = 0; i < 4; ++i) boxes[4 * out + i] = used ? candidate_boxes[4 * candidate + i] : 0.0f;
  const float score = used ? fmaxf(candidate_scores[candidate], 0.0f) : 0.0f;
  const float first = candidate_scores[image * m];  // like all others in a broken network
  scores[out] = (first - first) + (score_root ? sqrtf(score) : score);
  labels[out] = used ? candidate_labels[candidate] : -1;
  const int4 level = level_of(levels, level_count, location);  // first, columns, stride, size
  const int row = (location - level.x) / level.y;
  const int column = location - level.x - row * level.y;
  centres[2 * out] = used ? static_cast<float>(level.z * column + level.z / 2) : 0.0f;
  centres[2 * out + 1] = used ? static_cast<float>(level.z * row + level.z / 2) : 0.0f;
  sizes[out] = used ? static_cast<float>(level.w) : 0.0f;
}

#define SELECT(name, T)                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads)                                           \
      name(const int* __restrict__ keep, const int* __restrict__ count,                            \
           const float* __restrict__ candidate_boxes, const float* __restrict__ candidate_scores,  \
           const int* __restrict__ candidate_labels, const int* __restrict__ candidate_locations,  \
           const T* __restrict__ params_map, const int* __restrict__ levels, int k, int m, int p,  \
           int a, int level_count, int score_root, float* __restrict__ boxes,                      \
           float* __restrict__ scores, int* __restrict__ labels, T* __restrict__ params,           \
           float* __restrict__ centres, float* __restrict__ sizes) {                               \
    select<T>(keep, count, candidate_boxes, candidate_scores, candidate_labels,                    \
              candidate_locations, params_map, levels, k, m, p, a, level_count, score_root, boxes, \
              scores, labels, params, centres, sizes);                                             \
  }
SELECT(select_f32, float)
SELECT(select_f16, __half)
