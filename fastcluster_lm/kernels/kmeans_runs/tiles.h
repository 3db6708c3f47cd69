// Points in the lanes, tile by tile, and their products with a few rows at once; it compares nothing.
#pragma once
#include <algorithm>
#include <vector>

#include "products.h"

namespace {

constexpr int64_t TILE = 4 * WIDTH;

// Points whose coordinates lie one after the other within each tile of them.
struct Tiles {
  int64_t n, width, count;
  std::vector<float> points;  // (count, width, TILE), 0 beyond the last point

  Tiles(const float* X, int64_t n, int64_t width)
      : n(n), width(width), count((n + TILE - 1) / TILE), points(count * width * TILE) {
    for (int64_t i = 0; i < n; ++i) {
      float* to = points.data() + i / TILE * width * TILE + i % TILE;
      for (int64_t t = 0; t < width; ++t) to[t * TILE] = X[i * width + t];
    }
  }

  // Give use(first, products) the products of a tile with some rows (n_rows, width), (TILE) floats for each row.
  template <typename Use>
  void multiply(int64_t tile, const float* const* rows, int64_t n_rows, Use use) const {
    float out[MOST * TILE];
    for (int64_t first = 0; first < n_rows;) {
      const int64_t left = n_rows - first;
      // seven and eight rows as four and what is left
      const int64_t some = left <= MOST ? left : left <= 8 ? 4 : MOST;
      switch (some) {
        case 1: multiply_by<1, 4>(tile, rows + first, out); break;
        case 2: multiply_by<2, 4>(tile, rows + first, out); break;
        case 3: multiply_by<3, 4>(tile, rows + first, out); break;
        case 4: multiply_by<4, 2>(tile, rows + first, out); break;
        case 5: multiply_by<5, 2>(tile, rows + first, out); break;
        default: multiply_by<6, 2>(tile, rows + first, out);
      }
      for (int64_t r = 0; r < some; ++r) use(first + r, out + r * TILE);
      first += some;
    }
  }

 private:
  static constexpr int64_t MOST = 6;  // rows at once: twice as many sums stay in registers

  template <int64_t ROWS, int64_t VECTORS>
  void multiply_by(int64_t tile, const float* const* rows, float* out) const {
    std::fill_n(out, ROWS * TILE, 0.0f);
    for (int64_t at = 0; at < TILE; at += VECTORS * WIDTH)
      ::multiply<ROWS, VECTORS>(rows, points.data() + tile * width * TILE + at, TILE, width, out + at, TILE);
  }
};

}  // namespace
