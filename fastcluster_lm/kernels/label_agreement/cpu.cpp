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

constexpr int64_t SCORES = 5, TABLES = 4;  // tables that are counted side by side

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

// The cells of one table
struct Cells {
  const Cell* first;
  int64_t count;
  const Cell* begin() const { return first; }
  const Cell* end() const { return first + count; }
};

// What scoring one table after the other needs, so that nothing is allocated in between
struct Scratch {
  Expected expected;
  XLogX xlogx;
  Matching matching;
  std::vector<int64_t> rows, columns, row_place, column_place;
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

// ari, ami, f1, f1_pairwise, f1_bcubed of one table (R, C), by its cells that hold points
void score(const Cells& table, int64_t R, int64_t C, Scratch& s, double* out) {
  s.rows.assign(R, 0);
  s.columns.assign(C, 0);
  int64_t n = 0, squares = 0, row_squares = 0, column_squares = 0, n_rows = 0, n_columns = 0;
  for (const Cell& cell : table) {
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
    for (const Cell& cell : table) cells += s.xlogx(cell.count);
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
  for (const Cell& cell : table) {
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

// Counts the tables of one labeling with some clusterings of the same points, side by side: the next point's cell of one
// table is often the last one's, and would wait for it.
class Counting {
 public:
  Counting(int64_t n, int64_t R, int64_t C) : n_(n), R_(R), C_(C), tables_(TABLES * R * C, 0) {
    // one more than there can be, which is written and never counted
    for (auto& own : cells_) own.resize(n + 1);
  }

  // rows (n), columns (some, n)
  void count(const int64_t* rows, const int64_t* columns, int64_t some) {
    switch (some) {
      case 1: count_of<1>(rows, columns); break;
      case 2: count_of<2>(rows, columns); break;
      case 3: count_of<3>(rows, columns); break;
      default: count_of<TABLES>(rows, columns);
    }
  }

  // Those that hold points, of one of the tables counted last.
  Cells cells(int64_t table) const { return {cells_[table].data(), found_[table]}; }

 private:
  template <int64_t SOME>
  void count_of(const int64_t* rows, const int64_t* columns) {
    Cell* next[SOME];
    int32_t* tables[SOME];
    for (int64_t t = 0; t < SOME; ++t) {
      next[t] = cells_[t].data();
      tables[t] = tables_.data() + t * R_ * C_;
    }
    for (int64_t point = 0; point < n_; ++point) {
      const int64_t row = rows[point];
#pragma GCC unroll 4
      for (int64_t t = 0; t < SOME; ++t) {
        const int64_t column = columns[t * n_ + point];
        *next[t] = {row, column, 0};
        // a cell that was there already is written over: no branch to mispredict
        next[t] += ++tables[t][row * C_ + column] == 1;
      }
    }
    for (int64_t t = 0; t < SOME; ++t) {
      found_[t] = next[t] - cells_[t].data();
      // most tables are mostly empty, and left as they were found: with no points
      for (int64_t c = 0; c < found_[t]; ++c) {
        Cell& cell = cells_[t][c];
        cell.count = std::exchange(tables[t][cell.row * C_ + cell.column], 0);
      }
    }
  }

  int64_t n_, R_, C_, found_[TABLES];
  std::vector<int32_t> tables_;
  std::vector<Cell> cells_[TABLES];
};

}  // namespace

// Every labeling against every clustering of each of J sets of n points: labelings (J, S, n) of codes below R,
// clusterings (J, L, n) of codes below C -> scores (J, S, L, 5)
extern "C" void score_labelings(const int64_t* labelings, const int64_t* clusterings, int64_t J, int64_t S, int64_t L,
                                int64_t n, int64_t R, int64_t C, double* scores, int32_t threads) {
  const int64_t parts = (L + TABLES - 1) / TABLES;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    Counting counting(n, R, C);
#pragma omp for schedule(dynamic, 4)
    for (int64_t task = 0; task < J * S * parts; ++task) {
      const int64_t labeling = task / parts, first = task % parts * TABLES, some = std::min(TABLES, L - first);
      const int64_t* columns = clusterings + (labeling / S * L + first) * n;
      counting.count(labelings + labeling * n, columns, some);
      for (int64_t t = 0; t < some; ++t)
        score(counting.cells(t), R, C, scratch, scores + (labeling * L + first + t) * SCORES);
    }
  }
}
