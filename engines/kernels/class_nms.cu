// class_nms.cu - class-aware greedy non-maximum suppression that returns indices.
// One block handles one image. It merges the runs into one order by rank, then goes through the
// candidates in chunks of one per thread: each is first tested against the boxes kept so far, then
// round by round the best one alive is kept and the others alive are tested against it.
// Traffic: 4 bytes per slot for the scores, 20 more per candidate looked at; 20 operations for each
// pair of a kept box and a later candidate, and one barrier per kept box, which is what takes time.
//
// in   boxes [N, M, 4], xyxy   scores [N, M], falling within each of `runs` equal parts; a score
//      <= 0 is an empty slot   labels int32 [N, M]
// out  keep int32 [N, K], -1 in unused slots   count int32 [N]
//      M > 5120 or K > 512, which the host refuses where it knows them, keep nothing

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;  // 32: a ballot of every warp is 32 words
constexpr int kMaxCandidates = 5120;   // kernels.MAX_CANDIDATES
constexpr int kMaxKept = 512;          // kernels.MAX_DETECTIONS
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr unsigned short kNobody = 0xffff;

template <int kSize>
struct Boxes {
  float4 corners[kSize];
  int labels[kSize];
};

union Scratch {
  float scores[kMaxCandidates];  // 20,480 bytes, until the order is known
  Boxes<kThreads> chunk;         // 20,480 bytes, afterwards
};

// How many of the falling scores[begin, end) come before `score`: the greater ones, and the equal
// ones too if they are in lower slots. Always in [0, end - begin], whatever the scores are.
__device__ int places_before(const float* scores, int begin, int end, float score, bool lower) {
  int low = begin, high = end;
  while (low < high) {
    const int middle = (low + high) / 2;
    const float other = scores[middle];
    if (lower ? other >= score : other > score) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - begin;
}

// Slots in falling score, ties in rising slot; empty ones are left out. Scores that do not fall can
// give two slots one rank: then one of them is lost, and another rank stays kNobody.
__device__ void merge_runs(const float* scores, int m, int runs, unsigned short* order) {
  const int length = (m + runs - 1) / runs;
  for (int slot = threadIdx.x; slot < m; slot += kThreads) {
    const float score = scores[slot];
    if (!(score > 0.0f)) continue;
    const int own = slot / length;
    int rank = slot - own * length;
    for (int run = 0; run < runs; ++run) {
      const int begin = min(run * length, m), end = min(begin + length, m);
      if (run != own) rank += places_before(scores, begin, end, score, run < own);
    }
    order[rank] = static_cast<unsigned short>(slot);
  }
}

// Four loads: inside an engine `boxes` may begin at any multiple of 4 bytes, one of 16 needs 16.
__device__ float4 box_at(const float* boxes, size_t slot) {
  const float* box = boxes + 4 * slot;
  return make_float4(box[0], box[1], box[2], box[3]);
}

__device__ float area(float4 box) {
  return __fmul_rn(__fsub_rn(box.z, box.x), __fsub_rn(box.w, box.y));
}

// Whether the overlap of two boxes is too great: bit for bit what ops.class_nms computes. Boxes
// without an area give 0 / 0, which suppresses nothing.
__device__ bool overlapping(float4 box, float4 kept, float iou_threshold) {
  const float width = fmaxf(__fsub_rn(fminf(box.z, kept.z), fmaxf(box.x, kept.x)), 0.0f);
  const float height = fmaxf(__fsub_rn(fminf(box.w, kept.w), fmaxf(box.y, kept.y)), 0.0f);
  const float overlap = __fmul_rn(width, height);
  const float both = __fsub_rn(__fadd_rn(area(box), area(kept)), overlap);
  return __fdiv_rn(overlap, both) > iou_threshold;
}

extern "C" __global__ void __launch_bounds__(kThreads)
    class_nms(const float* __restrict__ boxes, const float* __restrict__ scores,
              const int* __restrict__ labels, int m, int runs, int k, int iou_bits,
              int* __restrict__ keep, int* __restrict__ count) {
  __shared__ Scratch scratch;                       // 20,480 bytes
  __shared__ Boxes<kMaxKept> kept;                  // 10,240
  __shared__ unsigned short order[kMaxCandidates];  // 10,240
  __shared__ unsigned alive_words[2][kWarps];       // 256: a bit per candidate of the chunk, twice
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const size_t image = blockIdx.x, first_slot = image * m;
  const float iou_threshold = __int_as_float(iou_bits);
  const bool fits = m <= kMaxCandidates && k <= kMaxKept;
  int found = 0;  // boxes kept; the same in all threads at all times

  for (int slot = thread; fits && slot < m; slot += kThreads) {
    scratch.scores[slot] = scores[first_slot + slot];
    order[slot] = kNobody;
  }
  __syncthreads();
  if (fits) merge_runs(scratch.scores, m, runs, order);
  __syncthreads();

  int now = 0;  // the alive_words written last
  for (int start = 0; fits && start < m && found < k; start += kThreads) {
    // All have passed the barrier after the last use of the chunk before.
    const int slot = start + thread < m ? order[start + thread] : kNobody;
    bool alive = slot != kNobody;
    const float4 box =
        alive ? box_at(boxes, first_slot + slot) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int label = alive ? labels[first_slot + slot] : -1;
    scratch.chunk.corners[thread] = box;
    scratch.chunk.labels[thread] = label;
    for (int i = 0; alive && i < found; ++i) {
      alive = kept.labels[i] != label || !overlapping(box, kept.corners[i], iou_threshold);
    }
    // One barrier per round is enough: a warp may still read the words of the round before while
    // others write, so they write the other ones, whose readers have all passed the last barrier.
    while (true) {
      now ^= 1;
      const unsigned mine = __ballot_sync(kWholeWarp, alive);
      if (lane == 0) alive_words[now][warp] = mine;
      __syncthreads();
      const unsigned occupied = __ballot_sync(kWholeWarp, alive_words[now][lane] != 0);
      if (occupied == 0) break;
      const int best_warp = __ffs(occupied) - 1;
      const int best = 32 * best_warp + __ffs(alive_words[now][best_warp]) - 1;
      if (thread == best) {
        kept.corners[found] = box;
        kept.labels[found] = label;
        keep[image * k + found] = slot;
        alive = false;
      } else if (alive && label == scratch.chunk.labels[best]) {
        alive = !overlapping(box, scratch.chunk.corners[best], iou_threshold);
      }
      if (++found == k) break;
    }
  }
  for (int i = found + thread; i < k; i += kThreads) keep[image * k + i] = -1;
  if (thread == 0) count[image] = found;
}
