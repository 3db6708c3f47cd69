// Agreement of labelings with clusterings of the same points: tables counted and scored where they are counted.
//
// Source: Hubert and Arabie 1985 (ARI); Vinh, Epps and Bailey 2010, eq. 24a (AMI); Amigo et al. 2009 (BCubed);
//         Crouse 2016 (matching by shortest augmenting paths)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t SCORES = 5, LANES = 4;

typedef int64_t longs __attribute__((vector_size(32)));

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
  std::vector<int64_t> table, rows, columns, row_place, column_place;
  std::vector<Cell> cells;
  std::vector<double> gain, row_price, column_price, reach, blocked;
  std::vector<int64_t> column_of, owner, from;
  std::vector<std::pair<int64_t, int64_t>> row_sizes, column_sizes;
};

// The largest sum of gains (rows, stride) of a one-to-one matching, rows <= columns <= stride, stride a multiple of
// LANES. Prices make every reduced cost row_price - gain - column_price at least 0, and 0 for matched pairs
double best_matching(int64_t rows, int64_t columns, int64_t stride, Scratch& s) {
  const double infinite = std::numeric_limits<double>::infinity();
  s.row_price.resize(rows);
  s.column_price.assign(stride, 0);
  s.column_of.assign(rows, -1);
  s.owner.assign(stride, -1);
  s.from.resize(stride);
  s.reach.resize(stride);
  s.blocked.resize(stride);
  for (int64_t r = 0; r < rows; ++r) {
    const double* gain = s.gain.data() + r * stride;
    const int64_t best = std::max_element(gain, gain + columns) - gain;
    s.row_price[r] = gain[best];
    if (s.owner[best] < 0) {
      s.owner[best] = r;
      s.column_of[r] = best;
    }
  }
  for (int64_t first = 0; first < rows; ++first) {
    if (s.column_of[first] >= 0) continue;
    std::fill(s.reach.begin(), s.reach.end(), infinite);
    // infinite where a column has been reached for good, and where there is none
    std::fill(s.blocked.begin(), s.blocked.begin() + columns, 0.0);
    std::fill(s.blocked.begin() + columns, s.blocked.end(), infinite);
    double length = 0;
    int64_t row = first, column = -1;
    while (true) {
      const double* gain = s.gain.data() + row * stride;
      const double so_far = length + s.row_price[row];
      doubles least = {infinite, infinite, infinite, infinite};
      for (int64_t c = 0; c < stride; c += LANES) {
        const doubles here = so_far - load(gain + c) - load(s.column_price.data() + c);
        const doubles blocked = load(s.blocked.data() + c), before = load(s.reach.data() + c);
        const longs shorter = (here < before) & (blocked == 0);
        const doubles reach = shorter ? here : before;
        store(s.reach.data() + c, reach);
        longs from;
        std::memcpy(&from, s.from.data() + c, sizeof from);
        from = shorter ? longs{row, row, row, row} : from;
        std::memcpy(s.from.data() + c, &from, sizeof from);
        const doubles open = reach + blocked;
        least = open < least ? open : least;
      }
      length = std::min(std::min(least[0], least[1]), std::min(least[2], least[3]));
      // among equals a free column ends the search
      for (int64_t c = 0; c < columns; ++c)
        if (s.reach[c] + s.blocked[c] == length) {
          column = c;
          if (s.owner[c] < 0) break;
        }
      s.blocked[column] = infinite;
      if (s.owner[column] < 0) break;
      row = s.owner[column];
    }
    s.row_price[first] -= length;
    for (int64_t c = 0; c < columns; ++c)
      if (s.blocked[c] != 0 && s.owner[c] >= 0) {
        s.row_price[s.owner[c]] -= length - s.reach[c];
        s.column_price[c] -= length - s.reach[c];
      }
    while (column >= 0) {
      const int64_t r = s.from[column];
      s.owner[column] = r;
      std::swap(s.column_of[r], column);
    }
  }
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += s.gain[r * stride + s.column_of[r]];
  return sum;
}

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

// ari, ami, f1, f1_pairwise, f1_bcubed of one table (R, C)
void score(const int64_t* table, int64_t R, int64_t C, Scratch& s, double* out) {
  s.rows.assign(R, 0);
  s.columns.assign(C, 0);
  s.cells.clear();
  int64_t n = 0, squares = 0, row_squares = 0, column_squares = 0, n_rows = 0, n_columns = 0;
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < C; ++c)
      if (const int64_t x = table[r * C + c]) {
        s.cells.push_back({r, c, x});
        s.rows[r] += x;
        s.columns[c] += x;
        squares += x * x;
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
  const int64_t fewer = std::min(n_rows, n_columns), more = std::max(n_rows, n_columns);
  const int64_t stride = (more + LANES - 1) / LANES * LANES;
  number(s.rows, s.row_place);
  number(s.columns, s.column_place);
  double precision = 0, recall = 0;
  s.gain.assign(fewer * stride, 0);
  for (const Cell& cell : s.cells) {
    const double x = cell.count, row = s.rows[cell.row], column = s.columns[cell.column];
    const int64_t r = s.row_place[cell.row], c = s.column_place[cell.column];
    s.gain[tall ? c * stride + r : r * stride + c] = 2 * x / (row + column);
    recall += x * x / row;
    precision += x * x / column;
  }
  const double matched = best_matching(fewer, more, stride, s);
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
    for (int64_t i = 0; i < count; ++i) score(tables + i * R * C, R, C, scratch, scores + i * SCORES);
  }
}

// Every labeling against every clustering of each of J sets of n points: labelings (J, S, n) of codes below R,
// clusterings (J, L, n) of codes below C -> scores (J, S, L, 5)
extern "C" void score_labelings(const int64_t* labelings, const int64_t* clusterings, int64_t J, int64_t S, int64_t L,
                                int64_t n, int64_t R, int64_t C, double* scores, int32_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
    scratch.table.resize(R * C);
#pragma omp for schedule(dynamic, 16)
    for (int64_t i = 0; i < J * S * L; ++i) {
      const int64_t* rows = labelings + i / L * n;
      const int64_t* columns = clusterings + (i / (S * L) * L + i % L) * n;
      std::fill(scratch.table.begin(), scratch.table.end(), 0);
      for (int64_t point = 0; point < n; ++point) ++scratch.table[rows[point] * C + columns[point]];
      score(scratch.table.data(), R, C, scratch, scores + i * SCORES);
    }
  }
}
