// Choose each query's nearest bank points, exactly, nearest first; of equal distances the lower index.
//
// Few coordinates: all distances by direct differences. Many: a matmul done elsewhere gives a value of every point that
// bounds its distance from below; k + spare candidates by value are ranked by direct differences, and so is every point
// left out that may be as near as the k-th. quantised.cpp does the same by products of whole numbers.
#include "columns.h"
#include "settle.h"

namespace {

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

  // values (padded): squared distances of all points, infinite beyond the last
  void choose(int64_t layer, int64_t row, const float* values, int64_t padded) {
    const Problem& any = problems_[0];
    if (problems_.size() == 1 || any.k > FEW || any.bucketed() || !choose_from_one_list(layer, row, values, padded))
      for (const Problem& problem : problems_)
        problem.from_values(layer, row, values, padded, true, kept_, bounded_, buckets_, sorter_);
  }

 private:
  // Order the points that may be among the nearest under any set of identities, and take those of each set; false where
  // they are too many.
  bool choose_from_one_list(int64_t layer, int64_t row, const float* values, int64_t padded) {
    const Problem& any = problems_[0];
    for (size_t s = 0; s < problems_.size(); ++s) ids_[s] = problems_[s].identities(layer, row);
    const int64_t count = bounded_.smallest_of_each(values, any.n_bank, padded, any.k, ids_, true);
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
// after the other; most_paired: as in pass_squares -> distances, indices (sets, layers, n_queries, k)
extern "C" void neighbors_direct(const float* queries, const float* bank, float* columns, const int32_t* query_ids,
                                 const int32_t* bank_ids, int64_t sets, int64_t id_layers, int64_t layers,
                                 int64_t n_queries, int64_t n_bank, int64_t padded, int64_t width, int64_t k,
                                 int64_t most_paired, float* distances, int64_t* indices, int32_t threads) {
  std::vector<Problem> problems;
  for (int64_t s = 0; s < sets; ++s) {
    const int64_t places = s * layers * n_queries * k;
    problems.push_back({queries, nullptr, columns, query_ids ? query_ids + s * id_layers * n_queries : nullptr,
                        bank_ids ? bank_ids + s * id_layers * n_bank : nullptr, layers, n_queries, n_bank, width, k,
                        id_layers, distances + places, indices + places});
  }
#pragma omp parallel num_threads(threads)
  {
    UnderEach under_each(problems);
    pass_squares(queries, bank, columns, layers, n_queries, n_bank, padded, width, most_paired,
                 [&](int64_t layer, int64_t row, const float* values) { under_each.choose(layer, row, values, padded); });
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
                             int64_t padded, int64_t width, int64_t k, int64_t most_paired, int64_t* counts,
                             int32_t threads) {
  const auto count = [&](int64_t layer, int64_t row, float* values) {
    values[row] = INF;
    for (int64_t place = (layer * n + row) * k; place < (layer * n + row + 1) * k; ++place)
      counts[place] = values_below(values, n, values[indices[place]]);
  };
#pragma omp parallel num_threads(threads)
  pass_squares(points, points, columns, layers, n, n, padded, width, most_paired, count);
}

// How many values of each row are below each of its thresholds: values (rows, n), thresholds, counts (rows, k)
extern "C" void count_below(const float* values, const float* thresholds, int64_t rows, int64_t n, int64_t k,
                            int64_t* counts, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t place = row * k; place < (row + 1) * k; ++place)
      counts[place] = values_below(values + row * n, n, thresholds[place]);
}
