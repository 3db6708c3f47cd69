// Products of small float32 matrices, whole vectors of columns at a time; no matrix is copied.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace {

constexpr int TALL = 6, BROAD = 2;  // rows and vectors of columns that are summed in registers

// A matrix whose element (row, step) stands at row * row_stride + step * step_stride: one read as it is, or as its mirror.
struct Left {
  const float* at;
  int64_t row_stride, step_stride;
};

// What the sums begin with: nothing, a row that is the same for all, or what the result holds already.
struct Begin {
  const float* at;
  int64_t stride;
};

// out (M rows, L vectors of columns) = begin + left . right, over depth steps; right has a row a step
template <int M, int L>
inline void multiply_tile(Left left, const float* right, int64_t right_stride, int64_t depth, Begin begin, float* out,
                          int64_t out_stride) {
  vec sums[M][L];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) sums[m][l] = begin.at ? load(begin.at + m * begin.stride + l * WIDTH) : vec{};
  for (int64_t t = 0; t < depth; ++t) {
    vec r[L];
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) r[l] = load(right + t * right_stride + l * WIDTH);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const vec x = all(left.at[m * left.row_stride + t * left.step_stride]);
#pragma GCC unroll 2
      for (int l = 0; l < L; ++l) sums[m][l] += x * r[l];
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l) store(out + m * out_stride + l * WIDTH, sums[m][l]);
}

template <int L>
inline void multiply_columns(Left left, const float* right, int64_t right_stride, int64_t rows, int64_t depth, Begin begin,
                             float* out, int64_t out_stride) {
  int64_t m = 0;
  const auto tile = [&](auto height) {
    constexpr int M = decltype(height)::value;
    for (; m + M <= rows; m += M)
      multiply_tile<M, L>({left.at + m * left.row_stride, left.row_stride, left.step_stride}, right, right_stride, depth,
                          {begin.at ? begin.at + m * begin.stride : nullptr, begin.stride}, out + m * out_stride,
                          out_stride);
  };
  tile(std::integral_constant<int, TALL>{});
  tile(std::integral_constant<int, 2>{});
  tile(std::integral_constant<int, 1>{});
}

// out (rows, columns) = begin + left (rows, depth) . right (depth, columns); columns in whole vectors. An element's sum has
// one order whatever stands beside it
inline void multiply(Left left, const float* right, int64_t right_stride, int64_t rows, int64_t depth, int64_t columns,
                     Begin begin, float* out, int64_t out_stride) {
  for (int64_t n = 0; n < columns;) {
    const Begin here{begin.at ? begin.at + n : nullptr, begin.stride};
    if (columns - n >= BROAD * WIDTH) {
      multiply_columns<BROAD>(left, right + n, right_stride, rows, depth, here, out + n, out_stride);
      n += BROAD * WIDTH;
    } else {
      multiply_columns<1>(left, right + n, right_stride, rows, depth, here, out + n, out_stride);
      n += WIDTH;
    }
  }
}

// out (columns, rows) = m (rows, columns), mirrored
inline void mirror(const float* m, int64_t rows, int64_t columns, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = m[r * columns + c];
}

// out += the sum of m's rows
inline void add_rows(const float* m, int64_t rows, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += WIDTH) {
    vec sum = {};
    for (int64_t r = 0; r < rows; ++r) sum += load(m + r * columns + c);
    store(out + c, load(out + c) + sum);
  }
}

}  // namespace
