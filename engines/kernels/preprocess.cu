// preprocess.cu - a frame resized as Pillow's antialiased bilinear does it, on a canvas of zeros.
// A block handles 8 x 32 pixels of the canvas, a thread one of them. What the tile's rows and
// columns read is worked out once: a triangle that spans two pixels of the coarser grid.
// Each row is rounded to grey levels before the rows are weighted, as between Pillow's two passes.
// Weights are whole numbers over their sum, so float32 is exact up to side^2 / net side = 32,000
// (3840 -> 512 is 28,800) and wrong by less than a grey level far beyond.
// Traffic: 3*H*W bytes written; 3*h*w read where it shrinks, each byte by 4 threads and from L1 or
// L2 but for the first; where it enlarges, 12 bytes per pixel, nearly all from L1.
//
// in   frame u8 [h, w, 3], rows `pitch` bytes apart, sides below 2^28
// out  image u8 [H, W, 3]: the frame at net_h x net_w, then zeros

constexpr int kRows = 8, kColumns = 32;
constexpr int kThreads = kRows * kColumns;  // 8 * 32 = 256

// What one pixel of the output reads along one axis. Distances are in 1 / (2 * outputs) pixels.
struct Window {
  int first;     // pixel of the frame
  int distance;  // of its centre from that of the output pixel
  int step;      // by which `distance` grows from pixel to pixel
  int reach;     // a pixel's weight is `reach` less its distance; the window ends at zero
  float total;   // of the weights
};

__device__ float weight(const Window& window, int distance) {
  return static_cast<float>(window.reach - abs(distance));
}

__device__ Window window_of(int output, int inputs, int outputs) {
  const int step = 2 * outputs, reach = 2 * max(inputs, outputs);
  const long long centre = (2ll * output + 1) * inputs;
  const int first = static_cast<int>(max(0ll, (centre - reach + outputs) / step));
  const int distance = static_cast<int>((2ll * first + 1) * outputs - centre);
  Window window = {first, distance, step, reach, 0.0f};
  for (int i = first, d = distance; i < inputs && d < reach; ++i, d += step) {
    window.total += weight(window, d);
  }
  return window;
}

// A correctly rounded division: Pillow rounds a half up, and halves are frequent.
__device__ float grey(float sum, float total) { return floorf(__fdiv_rn(sum, total) + 0.5f); }

extern "C" __global__ void __launch_bounds__(kThreads)
    preprocess(const unsigned char* __restrict__ frame, int pitch, int h, int w, int net_h,
               int net_w, int canvas_h, int canvas_w, unsigned char* __restrict__ image) {
  __shared__ Window rows[kRows], columns[kColumns];
  const int thread = threadIdx.x;
  const int top = blockIdx.y * kRows, left = blockIdx.x * kColumns;
  const int y = top + thread / kColumns, x = left + thread % kColumns;
  if (thread < kColumns) {
    if (x < net_w) columns[thread] = window_of(x, w, net_w);
  } else if (thread < kColumns + kRows) {
    const int row = thread - kColumns;
    if (top + row < net_h) rows[row] = window_of(top + row, h, net_h);
  }
  __syncthreads();
  if (y >= canvas_h || x >= canvas_w) return;

  float pixel[3] = {0.0f, 0.0f, 0.0f};
  if (y < net_h && x < net_w) {
    const Window row = rows[thread / kColumns], column = columns[thread % kColumns];
    for (int i = row.first, d = row.distance; i < h && d < row.reach; ++i, d += row.step) {
      const unsigned char* from = frame + static_cast<long long>(i) * pitch;
      from += 3ll * column.first;
      float line[3] = {0.0f, 0.0f, 0.0f};
      int distance = column.distance;
      for (int j = column.first; j < w && distance < column.reach; ++j) {
        for (int c = 0; c < 3; ++c) line[c] += weight(column, distance) * from[c];
        distance += column.step;
        from += 3;
      }
      for (int c = 0; c < 3; ++c) pixel[c] += weight(row, d) * grey(line[c], column.total);
    }
    for (int c = 0; c < 3; ++c) pixel[c] = grey(pixel[c], row.total);
  }
  unsigned char* to = image + 3 * (static_cast<long long>(y) * canvas_w + x);
  for (int c = 0; c < 3; ++c) to[c] = static_cast<unsigned char>(pixel[c]);
}
