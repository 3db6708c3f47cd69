// Squared distances by direct differences, of points with few coordinates, laid one after the other; it chooses none.
#pragma once
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "settle.h"

namespace {

int64_t omp_threads() {
#if defined(_OPENMP)
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// points of so many coordinates may be compared in pairs: for narrower ones to mirror a distance costs as much as to
// compute it
constexpr int64_t LEAST_MIRRORED = 8;
constexpr int64_t QUERIES = 4;  // rows whose distances are computed together: as many sums as hide an addition's latency

// adds to sums the squares of the differences in one coordinate, of some queries and vectors of points
template <int64_t VECTORS>
__attribute__((always_inline)) inline void add_squares(const float* const* queries, int64_t t, const float* columns,
                                                       vec (&sums)[QUERIES][VECTORS]) {
  vec at[VECTORS];
#pragma GCC unroll 8
  for (int64_t v = 0; v < VECTORS; ++v) at[v] = in_register(load(columns + v * WIDTH));
#pragma GCC unroll 8
  for (int64_t q = 0; q < QUERIES; ++q) {
    const vec own = all(queries[q][t]);
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) {
      const vec apart = own - at[v];
      sums[q][v] += apart * apart;
    }
  }
}

// squared distances of some queries to some vectors of points from `start` on
template <int64_t VECTORS>
void squares_to_vectors(const float* const* queries, const float* columns, int64_t padded, int64_t width, int64_t start,
                        float* const* out) {
  vec sums[QUERIES][VECTORS] = {};
  for (int64_t t = 0; t < width; ++t) add_squares(queries, t, columns + t * padded + start, sums);
  for (int64_t q = 0; q < QUERIES; ++q)
    for (int64_t v = 0; v < VECTORS; ++v) store(out[q] + start + v * WIDTH, sums[q][v]);
}

// The same of TOGETHER queries and some vectors of points at a time, from `start` on; says where what is left begins.
// Queries take turns at the points, which stay in the nearest cache meanwhile.
template <int64_t VECTORS>
int64_t squares_from(int64_t start, const float* const* queries, const float* columns, int64_t padded, int64_t width,
                     float* const* out) {
  for (; start + VECTORS * WIDTH <= padded; start += VECTORS * WIDTH)
    for (int64_t q = 0; q < TOGETHER; q += QUERIES)
      squares_to_vectors<VECTORS>(queries + q, columns, padded, width, start, out + q);
  return start;
}

// squared distances of TOGETHER queries to all points from `start` on, whose coordinates lie one after the other: columns
// (width, padded)
void squares_to_all(const float* const* queries, const float* columns, int64_t start, int64_t padded, int64_t width,
                    float* const* out) {
  start = squares_from<4>(start, queries, columns, padded, width, out);
  start = squares_from<2>(start, queries, columns, padded, width, out);
  squares_from<1>(start, queries, columns, padded, width, out);
}

// The coordinates of points (n, width) one after the other, (width, padded), 0 beyond the last point.
void lay_columns(const float* points, int64_t n, int64_t padded, int64_t width, float* columns) {
  for (int64_t start = 0; start < padded; start += WIDTH)
    for (int64_t t = 0; t < width; ++t) {
      vec own = {};
      for (int64_t lane = 0; lane < std::min(WIDTH, n - start); ++lane) own[lane] = points[(start + lane) * width + t];
      store(columns + t * padded + start, own);
    }
}

// The block of eight rows and columns from (row, column) on, mirrored: to (column, row)
void mirror(float* matrix, int64_t padded, int64_t row, int64_t column) {
  const ivec low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  const ivec firsts = {0, 1, 8, 9, 4, 5, 12, 13}, seconds = {2, 3, 10, 11, 6, 7, 14, 15};
  const ivec left = {0, 1, 2, 3, 8, 9, 10, 11}, right = {4, 5, 6, 7, 12, 13, 14, 15};
  vec rows[WIDTH], pairs[WIDTH], fours[WIDTH];
  for (int64_t r = 0; r < WIDTH; ++r) rows[r] = load(matrix + (row + r) * padded + column);
  for (int64_t r = 0; r < WIDTH; r += 2) {
    pairs[r] = shuffle(rows[r], rows[r + 1], low);
    pairs[r + 1] = shuffle(rows[r], rows[r + 1], high);
  }
  for (int64_t r = 0; r < WIDTH; r += 4)
    for (int64_t half = 0; half < 2; ++half) {
      fours[r + 2 * half] = shuffle(pairs[r + half], pairs[r + 2 + half], firsts);
      fours[r + 2 * half + 1] = shuffle(pairs[r + half], pairs[r + 2 + half], seconds);
    }
  for (int64_t r = 0; r < 4; ++r) {
    store(matrix + (column + r) * padded + row, shuffle(fours[r], fours[r + 4], left));
    store(matrix + (column + 4 + r) * padded + row, shuffle(fours[r], fours[r + 4], right));
  }
}

// Squared distances of all pairs of a layer's points, each pair computed once: matrix (padded, padded); what stands beyond
// the last point means nothing.
void squares_of_pairs(const float* points, const float* columns, int64_t n, int64_t padded, int64_t width, float* matrix) {
  static_assert(TOGETHER == WIDTH);
  for (int64_t first = 0; first < padded; first += TOGETHER) {
    const float* group[TOGETHER];
    float* out[TOGETHER];
    for (int64_t q = 0; q < TOGETHER; ++q) {
      group[q] = points + std::min(first + q, n - 1) * width;
      out[q] = matrix + (first + q) * padded;
    }
    squares_to_all(group, columns, first, padded, width, out);
    for (int64_t other = first + WIDTH; other < padded; other += WIDTH) mirror(matrix, padded, first, other);
  }
}

// Give use(layer, query, squares) each query's squared distances from all points of its layer, infinite beyond the last,
// within a parallel region; use may write into them. columns (layers, width, padded) is room for the points' coordinates
// one after the other. Up to most_paired points that are their own bank are compared in pairs, in a matrix for each thread.
template <typename Use>
void pass_squares(const float* queries, const float* bank, float* columns, int64_t layers, int64_t n_queries,
                  int64_t n_bank, int64_t padded, int64_t width, int64_t most_paired, Use use) {
#pragma omp for schedule(static)
  for (int64_t layer = 0; layer < layers; ++layer)
    lay_columns(bank + layer * n_bank * width, n_bank, padded, width, columns + layer * width * padded);
  std::vector<float> room;
  if (queries == bank && n_queries == n_bank && width >= LEAST_MIRRORED && padded <= most_paired &&
      layers >= 2 * omp_threads()) {
    room.resize(padded * padded);
#pragma omp for schedule(dynamic, 1)
    for (int64_t layer = 0; layer < layers; ++layer) {
      squares_of_pairs(bank + layer * n_bank * width, columns + layer * width * padded, n_bank, padded, width, room.data());
      for (int64_t query = 0; query < n_bank; ++query) {
        float* own = room.data() + query * padded;
        std::fill(own + n_bank, own + padded, INF);
        use(layer, query, own);
      }
    }
    return;
  }
  room.resize(TOGETHER * padded);
  float* values[TOGETHER];
  for (int64_t q = 0; q < TOGETHER; ++q) values[q] = room.data() + q * padded;
  const int64_t groups = (n_queries + TOGETHER - 1) / TOGETHER;
#pragma omp for schedule(dynamic, 2)
  for (int64_t task = 0; task < layers * groups; ++task) {
    const int64_t layer = task / groups, first = task % groups * TOGETHER, rows = std::min(TOGETHER, n_queries - first);
    const float* group[TOGETHER];
    // the last one stands in for those beyond it
    for (int64_t q = 0; q < TOGETHER; ++q) group[q] = queries + (layer * n_queries + first + std::min(q, rows - 1)) * width;
    squares_to_all(group, columns + layer * width * padded, 0, padded, width, values);
    for (int64_t q = 0; q < rows; ++q) {
      std::fill(values[q] + n_bank, values[q] + padded, INF);
      use(layer, first + q, values[q]);
    }
  }
}

}  // namespace
