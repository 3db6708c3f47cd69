// Choose the points that a run of KMeans starts from: greedy k-means++.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "codes.h"
#include "products.h"

namespace {

typedef float quad __attribute__((vector_size(16)));

struct Problem {
  const float* X;        // (n, width), centred and of size about 1
  const float* x_sq;     // (n)
  const int64_t* order;  // 0 .. n - 1
  int64_t n, width, k;
  const Codes* codes;    // of the points; nullptr where they do not pay
};

// Choose k of the points to start from: each next one with odds by squared distance, the best of the trials.
void seed(const Problem& problem, const double* draws, int64_t draw_stride, int64_t trials, int64_t* chosen) {
  const int64_t n = problem.n, width = problem.width;
  Products products(width, trials);
  const int64_t lanes = products.padded;
  std::vector<float> closest(n, INF), reached(n * lanes);
  std::vector<double> mass(n), sums(lanes);
  std::vector<int64_t> candidates(trials);
  for (int64_t c = 0; c < problem.k; ++c) {
    const double* draw = draws + c * draw_stride;
    const int64_t tried = c == 0 ? 1 : trials;
    if (c == 0) {
      candidates[0] = static_cast<int64_t>(draw[0] * n);
    } else {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) mass[i] = sum += closest[i];
      // the first point whose cumulated distance exceeds the draw: a point at distance 0 is never it
      for (int64_t t = 0; t < trials; ++t)
        candidates[t] = std::min<int64_t>(
            std::upper_bound(mass.begin(), mass.end(), draw[t] * sum) - mass.begin(), n - 1);
    }
    for (int64_t t = 0; t < tried; ++t)
      products.put(t, problem.X + candidates[t] * width, problem.x_sq[candidates[t]]);
    double best = std::numeric_limits<double>::infinity();
    int64_t winner = 0;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t start = 0; start < n; start += BLOCK) {
      const int64_t count = std::min(BLOCK, n - start);
      products.multiply_all(problem.X, problem.order + start, count);
      for (int64_t t = 0; t < tried; t += WIDTH) {
        // a lane for each trial
        const vec candidate_sq = load(products.sq_norm.data() + t);
        doubles sum[2] = {};
        for (int64_t p = 0; p < count; ++p) {
          const int64_t i = start + p;
          vec near = (all(problem.x_sq[i]) + candidate_sq) - all(2.0f) * load(products.block.data() + p * lanes + t);
          near = near < vec{} ? vec{} : near;
          near = near < all(closest[i]) ? near : all(closest[i]);
          store(reached.data() + i * lanes + t, near);
          quad half[2];
          std::memcpy(half, &near, sizeof half);
          sum[0] += __builtin_convertvector(half[0], doubles);
          sum[1] += __builtin_convertvector(half[1], doubles);
        }
        for (int64_t lane = 0; lane < WIDTH; ++lane) sums[t + lane] += sum[lane / 4][lane % 4];
      }
    }
    for (int64_t t = 0; t < tried; ++t)
      if (sums[t] < best) {
        best = sums[t];
        winner = t;
      }
    for (int64_t i = 0; i < n; ++i) closest[i] = reached[i * lanes + winner];
    chosen[c] = candidates[winner];
  }
}

}  // namespace
