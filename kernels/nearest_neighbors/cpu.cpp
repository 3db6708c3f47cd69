// Choose each query's nearest bank points, exactly, nearest first; of equal distances the lower index.
//
// Few coordinates: all distances by direct differences. Many: a matmul done elsewhere gives a value of every point that
// bounds its distance from below; k + spare candidates by value are ranked by direct differences, and so is every point
// left out that may be as near as the k-th. quantised.cpp does the same by products of whole numbers.
#include "settle.h"

namespace {

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
void squares_to_vectors(const float* const* queries, const float* columns, int64_t padded, int64_t width,
                          int64_t start, std::vector<float>* out) {
  vec sums[QUERIES][VECTORS] = {};
  for (int64_t t = 0; t < width; ++t) add_squares(queries, t, columns + t * padded + start, sums);
  for (int64_t q = 0; q < QUERIES; ++q)
    for (int64_t v = 0; v < VECTORS; ++v) store(out[q].data() + start + v * WIDTH, sums[q][v]);
}

// The same of TOGETHER queries and some vectors of points at a time, from `start` on; says where what is left begins. Queries
// take turns at the points, which stay in the nearest cache meanwhile.
template <int64_t VECTORS>
int64_t squares_from(int64_t start, const float* const* queries, const float* columns, int64_t padded, int64_t width,
                     std::vector<float>* out) {
  for (; start + VECTORS * WIDTH <= padded; start += VECTORS * WIDTH)
    for (int64_t q = 0; q < TOGETHER; q += QUERIES)
      squares_to_vectors<VECTORS>(queries + q, columns, padded, width, start, out + q);
  return start;
}

// squared distances of TOGETHER queries to all points, whose coordinates lie one after the other: columns (width, padded)
void squares_to_all(const float* const* queries, const float* columns, int64_t n, int64_t padded, int64_t width,
                    std::vector<float>* out) {
  int64_t start = squares_from<4>(0, queries, columns, padded, width, out);
  start = squares_from<2>(start, queries, columns, padded, width, out);
  squares_from<1>(start, queries, columns, padded, width, out);
  for (int64_t q = 0; q < TOGETHER; ++q) std::fill(out[q].begin() + n, out[q].begin() + padded, INF);
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

int64_t values_below(const float* values, int64_t n, float threshold) {
  ivec below = {};
  int64_t j = 0, count = 0;
  for (; j + WIDTH <= n; j += WIDTH) below -= load(values + j) < all(threshold);
  for (int64_t lane = 0; lane < WIDTH; ++lane) count += below[lane];
  for (; j < n; ++j) count += values[j] < threshold;
  return count;
}

// Chooses the neighbours of a row for several problems that differ in their identities alone.
class UnderEach {
 public:
  explicit UnderEach(const std::vector<Problem>& problems)
      : problems_(problems), kept_(2 * problems[0].k + 2 * WIDTH), ids_(problems.size()) {}

  // values: squared distances of all points, infinite beyond the last
  void choose(int64_t layer, int64_t row, const std::vector<float>& values) {
    const Problem& any = problems_[0];
    if (problems_.size() == 1 || any.k > FEW || any.bucketed() || !choose_from_one_list(layer, row, values))
      for (const Problem& problem : problems_)
        problem.from_values(layer, row, values, true, kept_, bounded_, buckets_, sorter_);
  }

 private:
  // Order the points that may be among the nearest under any set of identities, and take those of each set; false where
  // they are too many.
  bool choose_from_one_list(int64_t layer, int64_t row, const std::vector<float>& values) {
    const Problem& any = problems_[0];
    for (size_t s = 0; s < problems_.size(); ++s) ids_[s] = problems_[s].identities(layer, row);
    const int64_t padded = static_cast<int64_t>(values.size());
    const int64_t count = bounded_.smallest_of_each(values.data(), any.n_bank, padded, any.k, ids_, true);
    if (count > Sorter::MOST) return false;
    sorter_.put_first(bounded_.values(), bounded_.places(), count, count, distances_, indices_);
    const int64_t at = (layer * any.n_queries + row) * any.k;
    for (size_t s = 0; s < problems_.size(); ++s) {
      float* distances = problems_[s].distances + at;
      int64_t* indices = problems_[s].indices + at;
      for (int64_t r = 0, taken = 0; r < count && taken < any.k; ++r) {
        // one that is not admissible is written over
        distances[taken] = distances_[r];
        indices[taken] = indices_[r];
        taken += ids_[s].admits(indices_[r]);
      }
    }
    return true;
  }

  const std::vector<Problem>& problems_;
  std::vector<uint64_t> kept_;
  std::vector<Identities> ids_;
  float distances_[Sorter::MOST];
  int64_t indices_[Sorter::MOST];
  Bounded bounded_;
  Buckets buckets_;
  Sorter sorter_;
};

}  // namespace

// All rows by direct differences, under each of some sets of identities: query_ids (sets, id_layers, n_queries), bank_ids
// likewise, or nullptr for one set that admits all. columns (layers, width, padded): room for the bank's coordinates one
// after the other -> distances, indices (sets, layers, n_queries, k)
extern "C" void neighbors_direct(const float* queries, const float* bank, float* columns, const int32_t* query_ids,
                                 const int32_t* bank_ids, int64_t sets, int64_t id_layers, int64_t layers,
                                 int64_t n_queries, int64_t n_bank, int64_t padded, int64_t width, int64_t k,
                                 float* distances, int64_t* indices, int32_t threads) {
  std::vector<Problem> problems;
  for (int64_t s = 0; s < sets; ++s) {
    const int64_t places = s * layers * n_queries * k;
    problems.push_back({queries, nullptr, columns, query_ids ? query_ids + s * id_layers * n_queries : nullptr,
                        bank_ids ? bank_ids + s * id_layers * n_bank : nullptr, layers, n_queries, n_bank, width, k,
                        id_layers, distances + places, indices + places});
  }
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> values[TOGETHER];
    for (auto& of_query : values) of_query.resize(padded);
    UnderEach under_each(problems);
    const int64_t groups = (n_queries + TOGETHER - 1) / TOGETHER;
#pragma omp for schedule(static)
    for (int64_t layer = 0; layer < layers; ++layer)
      lay_columns(bank + layer * n_bank * width, n_bank, padded, width, columns + layer * width * padded);
#pragma omp for schedule(dynamic, 2)
    for (int64_t task = 0; task < layers * groups; ++task) {
      const int64_t layer = task / groups, first = task % groups * TOGETHER;
      const int64_t rows = std::min(TOGETHER, n_queries - first);
      const float* group[TOGETHER];
      // the last one stands in for those beyond it
      for (int64_t q = 0; q < TOGETHER; ++q)
        group[q] = queries + (layer * n_queries + first + std::min(q, rows - 1)) * width;
      squares_to_all(group, columns + layer * width * padded, n_bank, padded, width, values);
      for (int64_t q = 0; q < rows; ++q) under_each.choose(layer, first + q, values[q]);
    }
  }
}

// Some rows of one layer, from a block (n_rows, n_bank) of values: value + shift of the row <= squared distance, but for
// its slack. which (n_rows): the rows of the block; shift, slack, settled (n_queries). A row that leaves more than `most`
// points to be looked at beyond its candidates is not settled.
extern "C" void neighbors_bounded(const float* block, const int64_t* which, int64_t n_rows, const float* shift,
                                  const float* slack, const float* queries, const float* bank, const int32_t* query_ids,
                                  const int32_t* bank_ids, int64_t n_queries, int64_t n_bank, int64_t width, int64_t k,
                                  int64_t candidates, int64_t most, uint8_t* settled, float* distances,
                                  int64_t* indices, int32_t threads) {
  const Problem problem{queries, bank, nullptr, query_ids, bank_ids, 1, n_queries, n_bank, width, k, 1, distances, indices};
  const Bounds bounds{shift, slack, nullptr, nullptr};
  const int64_t padded = (n_bank + WIDTH - 1) / WIDTH * WIDTH;
#pragma omp parallel num_threads(threads)
  {
    Desk desk(TOGETHER, padded, candidates);
#pragma omp for schedule(dynamic, 2)
    for (int64_t task = 0; task < n_rows; task += TOGETHER) {
      const int64_t rows = std::min(TOGETHER, n_rows - task);
      for (int64_t g = 0; g < rows; ++g)
        std::copy(block + (task + g) * n_bank, block + (task + g + 1) * n_bank, desk.values.data() + g * padded);
      Group(problem, which + task, rows, bounds, desk.values.data(), desk).settle(candidates, most, settled);
    }
  }
}

// How many points are nearer to each point than each of some others: indices, counts (layers, n, k), the point itself not
// counted; columns (layers, width, padded) as above. Direct differences.
extern "C" void count_nearer(const float* points, float* columns, const int64_t* indices, int64_t layers, int64_t n,
                             int64_t padded, int64_t width, int64_t k, int64_t* counts, int32_t threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> values[TOGETHER];
    for (auto& of_point : values) of_point.resize(padded);
    const int64_t groups = (n + TOGETHER - 1) / TOGETHER;
#pragma omp for schedule(static)
    for (int64_t layer = 0; layer < layers; ++layer)
      lay_columns(points + layer * n * width, n, padded, width, columns + layer * width * padded);
#pragma omp for schedule(dynamic, 2)
    for (int64_t task = 0; task < layers * groups; ++task) {
      const int64_t layer = task / groups, first = task % groups * TOGETHER, rows = std::min(TOGETHER, n - first);
      const float* group[TOGETHER];
      for (int64_t q = 0; q < TOGETHER; ++q) group[q] = points + (layer * n + first + std::min(q, rows - 1)) * width;
      squares_to_all(group, columns + layer * width * padded, n, padded, width, values);
      for (int64_t q = 0; q < rows; ++q) {
        float* own = values[q].data();
        own[first + q] = INF;
        for (int64_t place = (layer * n + first + q) * k; place < (layer * n + first + q + 1) * k; ++place)
          counts[place] = values_below(own, n, own[indices[place]]);
      }
    }
  }
}

// How many values of each row are below each of its thresholds: values (rows, n), thresholds, counts (rows, k)
extern "C" void count_below(const float* values, const float* thresholds, int64_t rows, int64_t n, int64_t k,
                            int64_t* counts, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t place = row * k; place < (row + 1) * k; ++place)
      counts[place] = values_below(values + row * n, n, thresholds[place]);
}
