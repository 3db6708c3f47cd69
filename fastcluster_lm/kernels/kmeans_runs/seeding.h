// Choose the points that a run of KMeans starts from: greedy k-means++.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "products.h"
#include "tiles.h"

namespace {

// All trials of a tile of points are compared at once.
class Seeding {
 public:
  // X and x_sq are the points of the tiles and their squares.
  Seeding(const Tiles& tiles, const float* X, const float* x_sq, int64_t trials)
      : tiles_(tiles), X_(X), trials_(trials), padded_(tiles.count * TILE), x_sq_(padded_),
        reached_((trials + 1) * padded_), cumulated_(tiles.count), closest_(reached_.data() + trials * padded_) {
    std::copy_n(x_sq, tiles.n, x_sq_.begin());
    for (int64_t t = 0; t < trials; ++t) free_.push_back(reached_.data() + t * padded_);
    // those beyond the last point stay at distance 0 and are never drawn
    std::fill_n(closest_, tiles.n, INF);
  }

  // Choose k of the points to start from: each next one with odds by squared distance, the best of the trials.
  void choose(int64_t k, const double* draws, int64_t draw_stride, int64_t* chosen) {
    std::vector<int64_t> candidates(trials_);
    std::vector<double> sums(trials_);
    for (int64_t c = 0; c < k; ++c) {
      const double* draw = draws + c * draw_stride;
      const int64_t tried = c == 0 ? 1 : trials_;
      if (c == 0)
        candidates[0] = static_cast<int64_t>(draw[0] * tiles_.n);
      else
        draw_candidates(draw, candidates.data());
      reach(candidates.data(), tried, sums.data());
      const int64_t winner = std::min_element(sums.begin(), sums.begin() + tried) - sums.begin();
      std::swap(closest_, free_[winner]);
      chosen[c] = candidates[winner];
    }
  }

 private:
  // Points by odds: the first at which the cumulated distance exceeds the draw; one at distance 0 only where all are.
  void draw_candidates(const double* draw, int64_t* candidates) {
    double sum = 0;
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      vec mass = {};
      for (int64_t v = 0; v < TILE; v += WIDTH) mass += load(closest_ + tile * TILE + v);
      cumulated_[tile] = sum += total(mass);
    }
    for (int64_t t = 0; t < trials_; ++t) {
      const double drawn = draw[t] * sum;
      int64_t tile = 0;
      for (int64_t before = 0; before < tiles_.count - 1; ++before) tile += cumulated_[before] <= drawn;
      double rest = tile ? drawn - cumulated_[tile - 1] : drawn;
      // where rounding leaves nothing to exceed the draw, the last point at a distance
      int64_t at = tiles_.n - 1;
      for (int64_t i = tile * TILE; i < std::min(tiles_.n, (tile + 1) * TILE); ++i) {
        if (!(closest_[i] > 0)) continue;
        at = i;
        rest -= closest_[i];
        if (rest < 0) break;
      }
      candidates[t] = at;
    }
  }

  // Squared distances of all points from their nearest chosen one if a candidate were chosen too, and their sums
  void reach(const int64_t* candidates, int64_t tried, double* sums) {
    std::vector<const float*> rows(tried);
    std::vector<doubles> parts(tried, doubles{});
    for (int64_t t = 0; t < tried; ++t) rows[t] = X_ + candidates[t] * tiles_.width;
    for (int64_t tile = 0; tile < tiles_.count; ++tile)
      tiles_.multiply(tile, rows.data(), tried, [&](int64_t t, const float* products) {
        const vec own = all(x_sq_[candidates[t]]);
        float* reached = free_[t] + tile * TILE;
        vec mass = {};
        for (int64_t v = 0; v < TILE; v += WIDTH) {
          const int64_t i = tile * TILE + v;
          const vec before = load(closest_ + i);
          vec near = (load(x_sq_.data() + i) + own) - all(2.0f) * load(products + v);
          near = near < vec{} ? vec{} : near;
          near = near < before ? near : before;
          store(reached + v, near);
          mass += near;
        }
        parts[t] += low_half(mass) + high_half(mass);
      });
    for (int64_t t = 0; t < tried; ++t) sums[t] = (parts[t][0] + parts[t][1]) + (parts[t][2] + parts[t][3]);
  }

  const Tiles& tiles_;
  const float* X_;
  int64_t trials_, padded_;
  std::vector<float> x_sq_, reached_;  // (padded), (trials + 1, padded)
  std::vector<double> cumulated_;      // (tiles)
  // the lines of reached_: what was reached with the points chosen so far, and room for each trial
  float* closest_;
  std::vector<float*> free_;
};

}  // namespace
