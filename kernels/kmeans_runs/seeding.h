// Choose the points that a run of KMeans starts from: greedy k-means++.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "products.h"
#include "tiles.h"

namespace {

// All trials of a tile of points are compared at once.
class Seeding {
 public:
  // X and x_sq are the points of the tiles and their squares.
  Seeding(const Tiles& tiles, const float* X, const float* x_sq, int64_t trials)
      : tiles_(tiles), X_(X), trials_(trials), x_sq_(tiles.count * TILE), closest_(tiles.count * TILE),
        reached_(trials * tiles.count * TILE), mass_(tiles.count), masses_(trials * tiles.count) {
    std::copy_n(x_sq, tiles.n, x_sq_.begin());
    // those beyond the last point stay at distance 0 and are never drawn
    std::fill_n(closest_.begin(), tiles.n, INF);
  }

  // Choose k of the points to start from: each next one with odds by squared distance, the best of the trials.
  void choose(int64_t k, const double* draws, int64_t draw_stride, int64_t* chosen) {
    const int64_t padded = tiles_.count * TILE;
    std::vector<int64_t> candidates(trials_);
    for (int64_t c = 0; c < k; ++c) {
      const double* draw = draws + c * draw_stride;
      const int64_t tried = c == 0 ? 1 : trials_;
      if (c == 0)
        candidates[0] = static_cast<int64_t>(draw[0] * tiles_.n);
      else
        draw_candidates(draw, candidates.data());
      reach(candidates.data(), tried);
      double best = std::numeric_limits<double>::infinity();
      int64_t winner = 0;
      for (int64_t t = 0; t < tried; ++t) {
        double sum = 0;
        for (int64_t tile = 0; tile < tiles_.count; ++tile) sum += masses_[t * tiles_.count + tile];
        if (sum < best) {
          best = sum;
          winner = t;
        }
      }
      std::copy_n(reached_.begin() + winner * padded, padded, closest_.begin());
      std::copy_n(masses_.begin() + winner * tiles_.count, tiles_.count, mass_.begin());
      chosen[c] = candidates[winner];
    }
  }

 private:
  // Points by odds: the first at which the cumulated distance exceeds the draw; one at distance 0 only where all are.
  void draw_candidates(const double* draw, int64_t* candidates) const {
    double sum = 0;
    int64_t farthest_tile = 0;
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      sum += mass_[tile];
      if (mass_[tile] > 0) farthest_tile = tile;
    }
    for (int64_t t = 0; t < trials_; ++t) {
      double rest = draw[t] * sum;
      // where rounding leaves nothing to exceed the draw, the last point at a distance
      int64_t tile = 0, at = tiles_.n - 1;
      while (tile < farthest_tile && !(mass_[tile] > rest)) rest -= mass_[tile++];
      for (int64_t i = tile * TILE; i < std::min(tiles_.n, (tile + 1) * TILE); ++i) {
        if (!(closest_[i] > 0)) continue;
        at = i;
        rest -= closest_[i];
        if (rest < 0) break;
      }
      candidates[t] = at;
    }
  }

  // Squared distances of all points from their nearest chosen one if a candidate were chosen too, and sums over tiles
  void reach(const int64_t* candidates, int64_t tried) {
    std::vector<const float*> rows(tried);
    for (int64_t t = 0; t < tried; ++t) rows[t] = X_ + candidates[t] * tiles_.width;
    for (int64_t tile = 0; tile < tiles_.count; ++tile)
      tiles_.multiply(tile, rows.data(), tried, [&](int64_t t, const float* products) {
        const vec own = all(x_sq_[candidates[t]]);
        vec mass = {};
        for (int64_t v = 0; v < TILE; v += WIDTH) {
          const int64_t i = tile * TILE + v;
          const vec before = load(closest_.data() + i);
          vec near = (load(x_sq_.data() + i) + own) - all(2.0f) * load(products + v);
          near = near < vec{} ? vec{} : near;
          near = near < before ? near : before;
          store(reached_.data() + t * tiles_.count * TILE + i, near);
          mass += near;
        }
        masses_[t * tiles_.count + tile] = total(mass);
      });
  }

  const Tiles& tiles_;
  const float* X_;
  int64_t trials_;
  std::vector<float> x_sq_, closest_;
  std::vector<float> reached_;         // (trials, count * TILE)
  std::vector<double> mass_, masses_;  // of the tiles: (count), (trials, count)
};

}  // namespace
