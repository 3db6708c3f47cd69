// The one-to-one matching of largest gain between two sets of which few pairs gain anything.
//
// Source: Jonker and Volgenant 1987, augmenting row reduction and shortest augmenting paths; rows may stay alone, which
// gains 0
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace {

// Prices of rows and columns are at least 0, and together at least the gain of every pair; no more than that for matched
// pairs, and 0 for what is alone. Rows are matched one after the other.
class Matching {
 public:
  void begin(int64_t n_rows, int64_t n_columns) {
    n_rows_ = n_rows;
    pairs_.clear();
    row_price_.assign(n_rows, 0);
    column_of_.assign(n_rows, -1);
    starts_.assign(n_rows + 1, 0);
    column_price_.assign(n_columns, 0);
    owner_.assign(n_columns, -1);
    from_.resize(n_columns);
    reach_.assign(n_columns, INFINITE);
  }

  // A pair that gains something; each is named once.
  void add(int64_t row, int64_t column, double gain) {
    pairs_.push_back({row, column, gain});
    ++starts_[row + 1];
  }

  // The sum of the gains of the best matching.
  double best() {
    for (int64_t r = 0; r < n_rows_; ++r) starts_[r + 1] += starts_[r];
    column_.resize(pairs_.size());
    gain_.resize(pairs_.size());
    next_.assign(starts_.begin(), starts_.end());
    for (const Pair& pair : pairs_) {
      const int64_t at = next_[pair.row]++;
      column_[at] = pair.column;
      gain_[at] = pair.gain;
    }
    for (int64_t row = 0; row < n_rows_; ++row) match(row);
    double sum = 0;
    for (int64_t row = 0; row < n_rows_; ++row)
      for (int64_t e = starts_[row]; e < starts_[row + 1]; ++e)
        if (column_[e] == column_of_[row]) sum += gain_[e];
    return sum;
  }

 private:
  static constexpr int64_t MOST_TAKEN = 16;  // columns that are taken from their rows before a path is sought
  static constexpr double INFINITE = std::numeric_limits<double>::infinity();

  struct Pair {
    int64_t row, column;
    double gain;
  };

  // Match one row more: to the column that it gains most by, whose row then looks for another, a few times; and the last
  // one along the shortest path to a column that is free, or to a row that had better be alone.
  void match(int64_t first) {
    const int64_t* columns = column_.data();
    const double* gains = gain_.data();
    double price = 0;
    for (int64_t taken = 0;; ++taken) {
      // the best column less its price, and the next best, which may be to stay alone
      double next = 0;
      int64_t best = -1;
      price = 0;
      for (int64_t e = starts_[first]; e < starts_[first + 1]; ++e) {
        const double left = gains[e] - column_price_[columns[e]];
        if (left < price || (left == price && best >= 0 && owner_[best] < 0)) {
          next = std::max(next, left);
          continue;
        }
        next = price;
        price = left;
        best = columns[e];
      }
      if (best >= 0 && owner_[best] < 0) {
        row_price_[first] = price;
        owner_[best] = first;
        column_of_[first] = best;
        return;
      }
      if (best < 0 || taken == MOST_TAKEN || !(price > next)) break;
      // the column rises to where the next best is as good, and the row that had it looks for another
      const int64_t other = owner_[best];
      column_price_[best] += price - next;
      row_price_[first] = next;
      owner_[best] = first;
      column_of_[first] = best;
      column_of_[other] = -1;
      first = other;
    }
    row_price_[first] = price;
    // the best end so far, and the column that the path reaches last; -1: `first` stays alone
    double end = price, length = 0;
    int64_t last = -1, row = first;
    open_.clear();
    closed_.clear();
    touched_.clear();
    for (;;) {
      const double so_far = length + row_price_[row];
      for (int64_t e = starts_[row]; e < starts_[row + 1]; ++e) {
        const int64_t c = columns[e];
        // rounding must not make a path shorter than its beginning, nor reach a closed column again
        const double here = std::max(length, so_far + (column_price_[c] - gains[e])), before = reach_[c];
        if (here >= std::min(before, end)) continue;
        if (before == INFINITE) touched_.push_back(c);
        if (owner_[c] < 0) {
          end = here;
          last = c;
        } else if (before == INFINITE) {
          open_.push_back(c);
        }
        reach_[c] = here;
        from_[c] = row;
      }
      size_t nearest = open_.size();
      double least = end;
      for (size_t o = 0; o < open_.size(); ++o) {
        const double reach = reach_[open_[o]];
        nearest = reach < least ? o : nearest;
        least = std::min(reach, least);
      }
      if (nearest == open_.size()) break;
      const int64_t column = open_[nearest];
      open_[nearest] = open_.back();
      open_.pop_back();
      closed_.push_back(column);
      length = least;
      row = owner_[column];
      if (length + row_price_[row] < end) {
        end = length + row_price_[row];
        last = column;
      }
    }
    row_price_[first] -= end;
    for (const int64_t c : closed_) {
      row_price_[owner_[c]] = std::max(0.0, row_price_[owner_[c]] - (end - reach_[c]));
      column_price_[c] += end - reach_[c];
    }
    if (last >= 0 && owner_[last] >= 0) column_of_[owner_[last]] = -1;
    for (int64_t column = last; column >= 0;) {
      const int64_t r = from_[column];
      owner_[column] = r;
      std::swap(column_of_[r], column);
    }
    for (const int64_t c : touched_) reach_[c] = INFINITE;
  }

  int64_t n_rows_ = 0;
  std::vector<Pair> pairs_;
  std::vector<int64_t> starts_, next_, column_;  // where the pairs of a row begin, and theirs row by row
  std::vector<double> gain_, row_price_, column_price_, reach_;
  std::vector<int64_t> column_of_, owner_, from_, open_, closed_, touched_;
};

}  // namespace
