// The nearest of all centroids, and how near the second one is, from values that rank them.
#pragma once
#include <algorithm>

#include "products.h"

namespace {

// The nearest and the second nearest of values (padded) that stand for centroids.
struct Nearest {
  float best = INF, next = INF;
  int32_t label = 0;

  Nearest(const float* values, int64_t padded) {
    // lane by lane: the least of every eighth centroid, where it stands, and the least of the others
    vec least = all(INF), other = all(INF);
    ivec place = {};
    for (int64_t c = 0; c < padded; c += WIDTH) {
      const vec sq = load(values + c);
      const ivec less = sq < least;
      const vec larger = less ? least : sq;
      other = larger < other ? larger : other;
      least = less ? sq : least;
      place = less ? ivec{} + static_cast<int32_t>(c) : place;
    }
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      const int32_t at = place[lane] + static_cast<int32_t>(lane);
      if (least[lane] < best || (least[lane] == best && at < label)) {
        next = std::min(best, std::min(next, other[lane]));
        best = least[lane];
        label = at;
      } else {
        next = std::min(next, std::min(least[lane], other[lane]));
      }
    }
  }
};

}  // namespace
