// Euclidean distances by direct differences, of points that lie one after the other; it chooses none.
#pragma once
#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

// adds to sums (QUERIES, POINTS) the squares of the differences of some coordinates
template <int QUERIES, int POINTS>
__attribute__((always_inline)) inline void add_squares(const float* const* queries, const float* const* points,
                                                       int64_t from, int64_t end, vec (&sums)[QUERIES][POINTS]) {
  vec own[QUERIES][POINTS];
#pragma GCC unroll 8
  for (int q = 0; q < QUERIES; ++q)
#pragma GCC unroll 8
    for (int p = 0; p < POINTS; ++p) own[q][p] = vec{};
  for (int64_t t = from; t < end; t += WIDTH) {
    vec at[POINTS];
#pragma GCC unroll 8
    for (int p = 0; p < POINTS; ++p) at[p] = load(points[p] + t);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; ++q) {
      const vec x = load(queries[q] + t);
#pragma GCC unroll 8
      for (int p = 0; p < POINTS; ++p) {
        const vec apart = x - at[p];
        own[q][p] += apart * apart;
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < QUERIES; ++q)
#pragma GCC unroll 8
    for (int p = 0; p < POINTS; ++p) sums[q][p] += own[q][p];
}

// distances of queries to points, all pairs: out (QUERIES, POINTS). A pair has the same bits whatever lies beside it
template <int QUERIES, int POINTS>
void distances_of_pairs(const float* const* queries, const float* const* points, int64_t width, float* out) {
  // sums of so many coordinates are added up, so that wide points round no worse
  constexpr int64_t CHUNK = 64 * WIDTH;
  vec sums[QUERIES][POINTS] = {};
  const int64_t whole = width / WIDTH * WIDTH;
  for (int64_t t = 0; t < whole; t += CHUNK) add_squares(queries, points, t, std::min(t + CHUNK, whole), sums);
  for (int q = 0; q < QUERIES; ++q)
    for (int p = 0; p < POINTS; ++p) {
      float rest = 0;
      for (int64_t u = whole; u < width; ++u) rest += (queries[q][u] - points[p][u]) * (queries[q][u] - points[p][u]);
      out[q * POINTS + p] = std::sqrt(total(sums[q][p]) + rest);
    }
}

// distances of some queries, two at a time but for a single one, to the bank's points at(0), at(1), ...: given to
// put(query, r, distance)
template <int QUERIES, typename At, typename Put>
void distances_to_some(const float* const* queries, const float* bank, int64_t width, int64_t count, At at, Put put) {
  constexpr int PAIR = QUERIES > 1 ? 2 : 1, AT_ONCE = 4;
  const float* points[AT_ONCE];
  float out[PAIR * AT_ONCE];
  for (int64_t r = 0; r < count; r += AT_ONCE) {
    // the last one stands in for those beyond it
    for (int64_t p = 0; p < AT_ONCE; ++p) points[p] = bank + at(std::min(r + p, count - 1)) * width;
    for (int q = 0; q < QUERIES; q += PAIR) {
      distances_of_pairs<PAIR, AT_ONCE>(queries + q, points, width, out);
      for (int own = 0; own < PAIR; ++own)
        for (int64_t p = 0; p < std::min<int64_t>(AT_ONCE, count - r); ++p) put(q + own, r + p, out[own * AT_ONCE + p]);
    }
  }
}

}  // namespace
