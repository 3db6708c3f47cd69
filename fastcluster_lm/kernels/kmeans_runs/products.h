// Products of chosen points with all centroids in float32, in blocks that stay in the cache; it compares nothing.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int64_t ROWS_AT_ONCE = 8, BLOCK = 64, DEPTH = 512;

int64_t whole_vectors(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

// out[p][c] += rows[p] . columns[.][c] for some points and vectors of centroids, over depth coordinates
template <int64_t POINTS, int64_t LANES>
void multiply(const float* const* rows, const float* columns, int64_t stride, int64_t depth, float* out, int64_t width) {
  vec sum[POINTS][LANES];
#pragma GCC unroll 8
  for (int64_t p = 0; p < POINTS; ++p)
#pragma GCC unroll 4
    for (int64_t l = 0; l < LANES; ++l) sum[p][l] = load(out + p * width + l * WIDTH);
  for (int64_t t = 0; t < depth; ++t) {
    vec c[LANES];
#pragma GCC unroll 4
    for (int64_t l = 0; l < LANES; ++l) c[l] = load(columns + t * stride + l * WIDTH);
#pragma GCC unroll 8
    for (int64_t p = 0; p < POINTS; ++p) {
      const vec x = all(rows[p][t]);
#pragma GCC unroll 4
      for (int64_t l = 0; l < LANES; ++l) sum[p][l] += x * c[l];
    }
  }
#pragma GCC unroll 8
  for (int64_t p = 0; p < POINTS; ++p)
#pragma GCC unroll 4
    for (int64_t l = 0; l < LANES; ++l) store(out + p * width + l * WIDTH, sum[p][l]);
}

// Products of chosen points with all centroids, in blocks that stay in the cache.
struct Products {
  int64_t width, padded;       // coordinates; centroids in whole vectors
  std::vector<float> columns;  // (width, padded)
  std::vector<float> sq_norm;  // (padded), infinite beyond the last centroid
  std::vector<float> block;    // (BLOCK, padded)

  Products(int64_t width, int64_t k)
      : width(width), padded(whole_vectors(k)), columns(width * padded), sq_norm(padded, INF), block(BLOCK * padded) {}

  void set(const float* centroids, int64_t k) {
    for (int64_t c = 0; c < k; ++c) put(c, centroids + c * width);
  }

  void put(int64_t c, const float* centroid) {
    float sum = 0;
    for (int64_t t = 0; t < width; ++t) {
      const float value = centroid[t];
      columns[t * padded + c] = value;
      sum += value * value;
    }
    sq_norm[c] = sum;
  }

  // block[p][c] = x . c for the count points of X named by index
  void multiply_all(const float* X, const int64_t* index, int64_t count) {
    std::fill(block.begin(), block.begin() + whole_rows(count) * padded, 0.0f);
    for (int64_t from = 0; from < width; from += DEPTH) {
      const int64_t depth = std::min(DEPTH, width - from);
      for (int64_t c = 0; c < padded;) {
        const int64_t lanes = padded - c >= 2 * WIDTH ? 2 : 1;
        for (int64_t p = 0; p < count; p += ROWS_AT_ONCE) {
          const float* rows[ROWS_AT_ONCE];
          for (int64_t r = 0; r < ROWS_AT_ONCE; ++r) rows[r] = X + index[std::min(p + r, count - 1)] * width + from;
          float* out = block.data() + p * padded + c;
          const float* at = columns.data() + from * padded + c;
          if (lanes == 2) {
            multiply<4, 2>(rows, at, padded, depth, out, padded);
            multiply<4, 2>(rows + 4, at, padded, depth, out + 4 * padded, padded);
          } else {
            multiply<8, 1>(rows, at, padded, depth, out, padded);
          }
        }
        c += lanes * WIDTH;
      }
    }
  }

  // block[p][c] = |c|^2 - 2 x . c, which ranks centroids as their distances do
  void values_of(const float* X, const int64_t* index, int64_t count) {
    multiply_all(X, index, count);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t c = 0; c < padded; c += WIDTH) {
        float* at = block.data() + p * padded + c;
        store(at, load(sq_norm.data() + c) - all(2.0f) * load(at));
      }
  }

  static int64_t whole_rows(int64_t count) { return (count + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE; }
};

}  // namespace
