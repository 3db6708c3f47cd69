// Nearest neighbours among points of many coordinates, by products of eight-bit codes and a second look in float32.
#include "codes.h"
#include "settle.h"

namespace {

constexpr int64_t ROWS_A_TASK = 4 * TOGETHER;

}  // namespace

// Codes of points (n, width) less the offset (width), as queries, as a bank, or both: see CodeRoom.
extern "C" void quantise(const float* points, const float* offset, int64_t n, int64_t width, int8_t* query_codes,
                         float* query_scales, float* query_squares, float* query_errors, int32_t* query_sums,
                         uint8_t* bank_codes, float* bank_scales, float* bank_squares, float* bank_errors,
                         int32_t* bank_sums, int32_t threads) {
  const int64_t stride = whole_quads(width), groups = (n + WIDTH - 1) / WIDTH;
  CodeRoom queries{query_codes, query_scales, query_squares, query_errors, query_sums, stride};
  CodeRoom bank{bank_codes, bank_scales, bank_squares, bank_errors, bank_sums, stride};
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> moved(stride + WIDTH, 0.0f);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < groups * WIDTH; ++i) {
      const float* point = points + i * width;
      if (query_codes && i < n) queries.put_query(i, point, offset, moved.data(), width);
      if (bank_codes && i < n) bank.put_in_bank(i, point, offset, moved.data(), width);
      if (bank_codes && i >= n) bank.pad_bank(i);
    }
  }
}

// What is added to a bank's codes.
extern "C" int32_t bank_offset() { return offset_of_bank(); }

// Coordinates of points along axes, both in codes, the axes as a bank: out (n, n_axes), whatever the axes' length
extern "C" void coordinates_along(const int8_t* point_codes, const float* point_scales, const int32_t* point_sums,
                                  int64_t n, const uint8_t* axis_codes, const float* axis_scales, int64_t n_axes,
                                  int64_t stride, float* out, int32_t threads) {
  const int64_t padded = (n_axes + WIDTH - 1) / WIDTH * WIDTH;
  // a value is a square less twice a product
  std::vector<float> scales(padded), squares(padded, 0.0f);
  for (int64_t axis = 0; axis < padded; ++axis) scales[axis] = -0.5f * axis_scales[axis];
  const Codes points{point_codes, point_scales, nullptr, nullptr, point_sums, n, stride};
  const Codes axes{axis_codes, scales.data(), squares.data(), nullptr, nullptr, n_axes, stride};
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> values(ROWS_A_TASK * padded);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < n; task += ROWS_A_TASK) {
      const int64_t rows = std::min(ROWS_A_TASK, n - task);
      int64_t which[ROWS_A_TASK];
      for (int64_t r = 0; r < rows; ++r) which[r] = task + r;
      values_of_rows(points, which, rows, axes, values.data());
      for (int64_t r = 0; r < rows; ++r)
        std::copy(values.data() + r * padded, values.data() + r * padded + n_axes, out + (task + r) * n_axes);
    }
  }
}

// The pivot nearest to each point of a bank as codes tell it by the pivots' coordinates, the first of equal ones:
// places (n)
extern "C" void nearest_pivots(const int8_t* pivot_codes, const float* pivot_scales, const float* pivot_squares,
                               const int32_t* pivot_sums, int64_t n_pivots, int64_t pivot_stride, const uint8_t* codes,
                               const float* scales, const float* squares, int64_t n, int64_t stride, int64_t* places,
                               int32_t threads) {
  const Codes pivots{pivot_codes, pivot_scales, pivot_squares, nullptr, pivot_sums, n_pivots, pivot_stride};
  const Codes points{codes, scales, squares, nullptr, nullptr, n, stride};
  const int64_t groups = (n + WIDTH - 1) / WIDTH;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t group = 0; group < groups; ++group) {
    vec least = all(INF);
    ivec place = {};
    for (int64_t at = 0; at < n_pivots; at += ROWS) {
      vec found[ROWS];
      int64_t which[ROWS];
      float* out[ROWS];
      for (int64_t r = 0; r < ROWS; ++r) {
        which[r] = std::min(at + r, n_pivots - 1);
        out[r] = reinterpret_cast<float*>(found + r);
      }
      values_of_groups<1>(pivots, which, points, group, out);
      for (int64_t r = 0; r < ROWS; ++r) {
        const vec value = found[r] + all(pivot_squares[which[r]]);
        const ivec less = value < least;
        least = less ? value : least;
        place = less ? ivec{} + static_cast<int32_t>(which[r]) : place;
      }
    }
    for (int64_t lane = 0; lane < std::min(WIDTH, n - group * WIDTH); ++lane) places[group * WIDTH + lane] = place[lane];
  }
}

// Sums of what the codes of points stand for, by the cell that each is in: places (n) -> out (n_cells, stride)
extern "C" void cell_sums(const int8_t* codes, const float* scales, const int64_t* places, int64_t n, int64_t stride,
                          int64_t n_cells, float* out, int32_t threads) {
  // a thread has some coordinates of all points, so that each sum has one order
  constexpr int64_t PART = 32 * WIDTH;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t first = 0; first < stride; first += PART) {
    const int64_t last = std::min(first + PART, stride);
    for (int64_t cell = 0; cell < n_cells; ++cell) std::fill(out + cell * stride + first, out + cell * stride + last, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      const int8_t* code = codes + i * stride;
      float* sum = out + places[i] * stride;
      for (int64_t t = first; t < last; ++t) sum[t] += scales[i] * code[t];
    }
  }
}

// A chain through a bank whose points are the queries too, each next one the nearest to the one before of those that are
// left: ranks (n), the place of each point in the chain.
extern "C" void chain_codes(const int8_t* query_codes, const float* query_scales, const float* query_squares,
                            const int32_t* query_sums, const uint8_t* bank_codes, const float* bank_scales,
                            const float* bank_squares, int64_t n, int64_t stride, int64_t* ranks) {
  const Codes queries{query_codes, query_scales, query_squares, nullptr, query_sums, n, stride};
  const Codes bank{bank_codes, bank_scales, bank_squares, nullptr, nullptr, n, stride};
  std::vector<float> values((n + WIDTH - 1) / WIDTH * WIDTH * ROWS);
  std::fill(ranks, ranks + n, -1);
  int64_t at = 0;
  for (int64_t rank = 0; rank < n; ++rank) {
    ranks[at] = rank;
    values_of_rows(queries, &at, 1, bank, values.data());
    int64_t nearest = -1;
    for (int64_t j = 0; j < n; ++j)
      if (ranks[j] < 0 && (nearest < 0 || values[j] < values[nearest])) nearest = j;
    at = nearest;
  }
}

// Some rows of one layer, named by which (n_rows), by the codes of queries and bank in coordinates that bring no points
// farther apart but for slack (n_queries) on the squared distance. A row that leaves more than `most` points to be looked
// at beyond its candidates is not settled.
extern "C" void neighbors_quantised(const int8_t* query_codes, const float* query_scales, const float* query_squares,
                                    const float* query_errors, const int32_t* query_sums, const uint8_t* bank_codes,
                                    const float* bank_scales, const float* bank_squares, const float* bank_errors,
                                    int64_t stride, const int64_t* which, int64_t n_rows, const float* slack,
                                    const float* queries, const float* bank, const int32_t* query_ids,
                                    const int32_t* bank_ids, int64_t n_queries, int64_t n_bank, int64_t width, int64_t k,
                                    int64_t candidates, int64_t most, uint8_t* settled, float* distances,
                                    int64_t* indices, int32_t threads) {
  const Problem problem{queries, bank, nullptr, query_ids, bank_ids, 1, n_queries, n_bank, width, k, 1, distances, indices};
  const Codes of_queries{query_codes, query_scales, query_squares, query_errors, query_sums, n_queries, stride};
  const Codes of_bank{bank_codes, bank_scales, bank_squares, bank_errors, nullptr, n_bank, stride};
  const Bounds bounds{query_squares, slack, query_errors, bank_errors};
  const int64_t padded = (n_bank + WIDTH - 1) / WIDTH * WIDTH;
#pragma omp parallel num_threads(threads)
  {
    Desk desk(ROWS_A_TASK, padded, candidates);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < n_rows; task += ROWS_A_TASK) {
      const int64_t rows = std::min(ROWS_A_TASK, n_rows - task);
      values_of_rows(of_queries, which + task, rows, of_bank, desk.values.data());
      for (int64_t at = 0; at < rows; at += TOGETHER)
        Group(problem, which + task + at, std::min(TOGETHER, rows - at), bounds, desk.values.data() + at * padded, desk)
            .settle(candidates, most, settled);
    }
  }
}
