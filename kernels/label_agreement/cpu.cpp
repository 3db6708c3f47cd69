// Agreement of labelings with clusterings of the same points: tables counted and scored where they are counted.
//
// Source: Hubert and Arabie 1985 (ARI); Vinh, Epps and Bailey 2010, eq. 24a (AMI); Amigo et al. 2009 (BCubed)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "matching.h"

namespace {

constexpr int64_t SCORES = 5;

// E[x/n log(n x / (a b))] for x hypergeometric: the overlap of random sets of a and b points among n
double expected_cell(int64_t a, int64_t b, int64_t n) {
  const int64_t low = std::max<int64_t>(0, a + b - n), high = std::min(a, b);
  const int64_t mode = std::clamp(static_cast<int64_t>((a + 1.0) * (b + 1.0) / (n + 2.0)), low, high);
  const double ratio = static_cast<double>(n) / (static_cast<double>(a) * b);
  auto term = [&](int64_t x) { return x > 0 ? x * std::log(x * ratio) : 0.0; };
  // weights relative to the mode's, from each neighbour's by the ratio of two successive probabilities
  double mass = 1, sum = term(mode), weight = 1;
  for (int64_t x = mode; x < high && weight > 1e-22; ++x) {
    weight *= static_cast<double>(a - x) * (b - x) / (static_cast<double>(x + 1) * (n - a - b + x + 1));
    mass += weight;
    sum += weight * term(x + 1);
  }
  weight = 1;
  for (int64_t x = mode; x > low && weight > 1e-22; --x) {
    weight *= static_cast<double>(x) * (n - a - b + x) / (static_cast<double>(a - x + 1) * (b - x + 1));
    mass += weight;
    sum += weight * term(x - 1);
  }
  return sum / mass / n;
}

// Expected cells that were found before, by (a, b) of one n: a table with open addressing
class Expected {
 public:
  double at(int64_t a, int64_t b, int64_t n) {
    if (n != n_) {
      n_ = n;
      used_ = 0;
      std::fill(keys_.begin(), keys_.end(), 0);
    }
    if (a > b) std::swap(a, b);
    // no margin is 0 here, so no key is
    const uint64_t key = static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(b);
    uint64_t slot = find(key);
    if (keys_[slot] != key) {
      if (2 * ++used_ > keys_.size()) {
        grow();
        slot = find(key);
      }
      keys_[slot] = key;
      values_[slot] = expected_cell(a, b, n);
    }
    return values_[slot];
  }

 private:
  uint64_t find(uint64_t key) const {
    const uint64_t mask = keys_.size() - 1;
    uint64_t slot = (key * 0x9E3779B97F4A7C15ull) >> 20 & mask;
    while (keys_[slot] != 0 && keys_[slot] != key) slot = (slot + 1) & mask;
    return slot;
  }
  void grow() {
    std::vector<uint64_t> keys(2 * keys_.size(), 0);
    std::vector<double> values(keys.size());
    keys.swap(keys_);
    values.swap(values_);
    for (size_t i = 0; i < keys.size(); ++i)
      if (keys[i]) {
        const uint64_t slot = find(keys[i]);
        keys_[slot] = keys[i];
        values_[slot] = values[i];
      }
  }
  std::vector<uint64_t> keys_ = std::vector<uint64_t>(1024, 0);
  std::vector<double> values_ = std::vector<double>(1024);
  uint64_t used_ = 0;
  int64_t n_ = -1;
};

// x log(x) of whole numbers, the small ones from a table
class XLogX {
 public:
  double operator()(int64_t x) {
    if (x >= LARGEST) return x * std::log(static_cast<double>(x));
    for (int64_t next = static_cast<int64_t>(known_.size()); next <= x; ++next)
      known_.push_back(next * std::log(static_cast<double>(next)));
    return known_[x];
  }

 private:
  static constexpr int64_t LARGEST = 65536;
  std::vector<double> known_ = {0.0};
};

// A cell of a table that holds points
struct Cell {
  int64_t row, column, count;
};

// What scoring one table after the other needs, so that nothing is allocated in between
struct Scratch {
  Expected expected;
  XLogX xlogx;
  Matching matching;
  std::vector<int32_t> table;
  std::vector<int64_t> rows, columns, row_place, column_place;
  std::vector<Cell> cells;
  std::vector<std::pair<int64_t, int64_t>> row_sizes, column_sizes;
};

// Each size among some margins, and how many have it
void count_sizes(std::vector<int64_t> margins, std::vector<std::pair<int64_t, int64_t>>& sizes) {
  std::sort(margins.begin(), margins.end());
  sizes.clear();
  for (const int64_t m : margins) {
    if (m == 0) continue;
    if (sizes.empty() || sizes.back().first != m) sizes.emplace_back(m, 0);
    ++sizes.back().second;
  }
}

// Number the margins that are not 0, in their order
void number(const std::vector<int64_t>& margins, std::vector<int64_t>& places) {
  places.resize(margins.size());
  int64_t next = 0;
  for (size_t i = 0; i < margins.size(); ++i) places[i] = margins[i] ? next++ : -1;
}

// ari, ami, f1, f1_pairwise, f1_bcubed of one table (R, C), whose cells that hold points are in the scratch
void score(int64_t R, int64_t C, Scratch& s, double* out) {
  s.rows.assign(R, 0);
  s.columns.assign(C, 0);
  int64_t n = 0, squares = 0, row_squares = 0, column_squares = 0, n_rows = 0, n_columns = 0;
  for (const Cell& cell : s.cells) {
    s.rows[cell.row] += cell.count;
    s.columns[cell.column] += cell.count;
    squares += cell.count * cell.count;
  }
  for (const int64_t m : s.rows) n += m, row_squares += m * m, n_rows += m > 0;
  for (const int64_t m : s.columns) column_squares += m * m, n_columns += m > 0;
  // ordered pairs of distinct points: in one cell, of one label, of one cluster; exact
  const int64_t both = squares - n, pairs_true = row_squares - n, pairs_pred = column_squares - n;
  const bool same = both == pairs_true && both == pairs_pred;
  const double b = both, t = pairs_true - both, p = pairs_pred - both, o = n * (n - 1) - both - t - p;
  out[0] = same ? 1 : 2 * (b * o - t * p) / ((b + t) * (t + o) + (b + p) * (p + o));
  const double pairs = static_cast<double>(pairs_true) + pairs_pred;
  out[3] = pairs > 0 ? 2.0 * both / pairs : 1;

  out[1] = same ? 1 : 0;
  if (!same && n_rows > 1 && n_columns > 1) {
    double cells = 0, of_rows = 0, of_columns = 0, expected = 0;
    for (const Cell& cell : s.cells) cells += s.xlogx(cell.count);
    for (const int64_t m : s.rows) of_rows += s.xlogx(m);
    for (const int64_t m : s.columns) of_columns += s.xlogx(m);
    const double log_n = std::log(static_cast<double>(n)), information = log_n + (cells - of_rows - of_columns) / n;
    count_sizes(s.rows, s.row_sizes);
    count_sizes(s.columns, s.column_sizes);
    for (const auto& [a, rows] : s.row_sizes)
      for (const auto& [b, columns] : s.column_sizes) expected += rows * columns * s.expected.at(a, b, n);
    const double largest = log_n - 0.5 * (of_rows + of_columns) / n;
    out[1] = (information - expected) / std::max(largest - expected, std::numeric_limits<double>::epsilon());
  }

  // labels and clusters without points have no F1 to give; the shorter side is matched to the longer
  const bool tall = n_rows > n_columns;
  number(s.rows, s.row_place);
  number(s.columns, s.column_place);
  double precision = 0, recall = 0;
  s.matching.begin(std::min(n_rows, n_columns), std::max(n_rows, n_columns));
  for (const Cell& cell : s.cells) {
    const double x = cell.count, row = s.rows[cell.row], column = s.columns[cell.column];
    const int64_t r = s.row_place[cell.row], c = s.column_place[cell.column];
    s.matching.add(tall ? c : r, tall ? r : c, 2 * x / (row + column));
    recall += x * x / row;
    precision += x * x / column;
  }
  const double matched = s.matching.best();
  out[2] = n_rows ? matched / n_rows : 1;
  out[4] = n ? 2 * precision * recall / (precision + recall) / n : 1;
}

}  // namespace

// tables (count, R, C) -> scores (count, 5)
extern "C" void score_tables(const int64_t* tables, int64_t count, int64_t R, int64_t C, double* scores,
                             int32_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 16)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t* table = tables + i * R * C;
      scratch.cells.clear();
      for (int64_t cell = 0; cell < R * C; ++cell)
        if (table[cell]) scratch.cells.push_back({cell / C, cell % C, table[cell]});
      score(R, C, scratch, scores + i * SCORES);
    }
  }
}

// Every labeling against every clustering of each of J sets of n points: labelings (J, S, n) of codes below R,
// clusterings (J, L, n) of codes below C -> scores (J, S, L, 5)
extern "C" void score_labelings(const int64_t* labelings, const int64_t* clusterings, int64_t J, int64_t S, int64_t L,
                                int64_t n, int64_t R, int64_t C, double* scores, int32_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    scratch.table.assign(R * C, 0);
#pragma omp for schedule(dynamic, 16)
    for (int64_t i = 0; i < J * S * L; ++i) {
      const int64_t* rows = labelings + i / L * n;
      const int64_t* columns = clusterings + (i / (S * L) * L + i % L) * n;
      scratch.cells.clear();
      for (int64_t point = 0; point < n; ++point)
        if (++scratch.table[rows[point] * C + columns[point]] == 1)
          scratch.cells.push_back({rows[point], columns[point], 0});
      // most tables are mostly empty, and left as they were found: with no points
      for (Cell& cell : scratch.cells) cell.count = std::exchange(scratch.table[cell.row * C + cell.column], 0);
      score(R, C, scratch, scores + i * SCORES);
    }
  }
}
