// Where each layer's points lie and how far they reach, in one pass over them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t FEW = 16;  // points whose sums stay in float32

// Add the coordinates of some points (count, width) to sums (width); returns the sum of their squares.
double add_points(const float* points, int64_t count, int64_t width, double* sums) {
  std::vector<float> few(width);
  double squares = 0;
  for (int64_t first = 0; first < count; first += FEW) {
    std::fill(few.begin(), few.end(), 0.0f);
    vec of_few = {};
    float rest = 0;
    for (int64_t i = first; i < std::min(count, first + FEW); ++i) {
      const float* x = points + i * width;
      int64_t t = 0;
      for (; t + WIDTH <= width; t += WIDTH) {
        const vec own = load(x + t);
        store(few.data() + t, load(few.data() + t) + own);
        of_few += own * own;
      }
      for (; t < width; ++t) {
        few[t] += x[t];
        rest += x[t] * x[t];
      }
    }
    for (int64_t t = 0; t < width; ++t) sums[t] += few[t];
    squares += total(of_few) + rest;
  }
  return squares;
}

// The largest deviation of each `every`-th point from the mean; of points that are all one, which the mean then is
// exactly, infinity.
float farthest(const float* points, int64_t n, int64_t width, int64_t every, float* mean) {
  int64_t alike = 1;
  while (alike < n && !std::memcmp(points, points + alike * width, width * sizeof(float))) ++alike;
  if (alike == n) {
    std::copy_n(points, width, mean);
    return std::numeric_limits<float>::infinity();
  }
  vec apart = {};
  float rest = 0;
  for (int64_t i = 0; i < n; i += every) {
    const float* x = points + i * width;
    int64_t t = 0;
    for (; t + WIDTH <= width; t += WIDTH) {
      const vec away = load(x + t) - load(mean + t), size = away < vec{} ? -away : away;
      apart = size > apart ? size : apart;
    }
    for (; t < width; ++t) rest = std::max(rest, std::fabs(x[t] - mean[t]));
  }
  for (int64_t lane = 0; lane < WIDTH; ++lane) rest = std::max(rest, apart[lane]);
  return rest;
}

}  // namespace

// X (layers, n, width) -> means (layers, width); sizes (2, layers): the sum of all squares, NaN where a value is, and the
// largest deviation of each `every`-th point from the mean, infinite where all points are one. sums (layers, chunks,
// width + 1) is room for chunks of `chunk` points.
extern "C" void point_frames(const float* X, int64_t layers, int64_t n, int64_t width, int64_t chunk, int64_t every,
                             double* sums, float* means, double* sizes, int32_t threads) {
  const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < layers * chunks; ++task) {
      const int64_t layer = task / chunks, first = task % chunks * chunk, count = std::min(chunk, n - first);
      double* own = sums + task * (width + 1);
      std::fill_n(own, width, 0.0);
      own[width] = add_points(X + (layer * n + first) * width, count, width, own);
    }
#pragma omp for schedule(static)
    for (int64_t layer = 0; layer < layers; ++layer) {
      const float* points = X + layer * n * width;
      double* all_sums = sums + layer * chunks * (width + 1);
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t t = 0; t <= width; ++t) all_sums[t] += all_sums[c * (width + 1) + t];
      float* mean = means + layer * width;
      for (int64_t t = 0; t < width; ++t) mean[t] = static_cast<float>(all_sums[t] / n);
      sizes[layers + layer] = farthest(points, n, width, every, mean);
      sizes[layer] = all_sums[width];
    }
  }
}
