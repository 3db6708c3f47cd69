// Settle rows whose distances are bounded from below: rank candidates by direct differences, and all that may be as near.
#pragma once
#include "distances.h"
#include "selection.h"

namespace {

// so many neighbours among so many points for each are found by buckets, others by a bound: measured with 5 to 300
// neighbours of 27 to 10,000 points
constexpr int64_t LEAST_BUCKETED = 128, BUCKETED_EACH = 24;

struct Problem {
  const float *queries, *bank, *columns;
  const int32_t *query_ids, *bank_ids;
  int64_t layers, n_queries, n_bank, width, k, id_layers;
  float* distances;
  int64_t* indices;

  Identities identities(int64_t layer, int64_t row) const {
    if (!bank_ids) return {nullptr, 0};
    const int64_t own = id_layers > 1 ? layer : 0;
    return {bank_ids + own * n_bank, query_ids[own * n_queries + row]};
  }

  // the nearest of a row's pairs, already in order
  void put(int64_t layer, int64_t row, const std::vector<uint64_t>& pairs) const {
    const int64_t at = (layer * n_queries + row) * k;
    for (int64_t r = 0; r < k; ++r) unpack(pairs[r], distances + at + r, indices + at + r);
  }

  // Whether the neighbours are so large a part of the bank that it is put in order bucket by bucket.
  bool bucketed() const { return k > LEAST_BUCKETED && n_bank <= BUCKETED_EACH * k; }

  // values (padded): distances, or their squares, infinite beyond the last point
  void from_values(int64_t layer, int64_t row, const float* values, int64_t padded, bool squared,
                   std::vector<uint64_t>& kept, Bounded& bounded, Buckets& buckets, Sorter& sorter) const {
    const Identities ids = identities(layer, row);
    if (bucketed()) {
      buckets.smallest(values, n_bank, padded, k, ids, squared, kept);
      put(layer, row, kept);
      return;
    }
    const int64_t at = (layer * n_queries + row) * k;
    const int64_t count = bounded.smallest(values, n_bank, padded, k, ids, squared);
    sorter.put_first(bounded.values(), bounded.places(), count, k, distances + at, indices + at);
  }
};

// What values of points say of their distances: sqrt(value + shift of the query) less what both may be off is no more
// than the distance, but for slack on its square.
struct Bounds {
  const float *shift, *slack;       // (n_queries)
  const float *error, *bank_error;  // (n_queries), (padded); nullptr: nothing is off
};

constexpr int64_t TOGETHER = 8;   // rows whose points are looked at together
constexpr float FARTHER = 1.05f;  // values that a row's candidates are sought below, over those of the row before
constexpr int64_t ALIKE = 3;      // rows share their points if all points are fewer than this part of their lists

// What a thread works with.
struct Desk {
  std::vector<float> values, found, whole;  // values (rows, padded), infinite beyond the last point
  std::vector<uint64_t> kept[TOGETHER];     // pairs of a row, the k nearest in order once it was ranked
  std::vector<int64_t> lists[TOGETHER], shared;
  std::vector<uint8_t> seen;
  Bounded bounded;
  Buckets buckets;
  Sorter sorter;

  Desk(int64_t rows, int64_t padded, int64_t candidates) : values(rows * padded, INF), seen(padded, 0) {
    for (auto& own : kept) own.resize(2 * candidates + 2 * WIDTH);
  }
};

// Up to TOGETHER rows that are settled by their values (rows, padded), which become infinite where a point was looked at.
class Group {
 public:
  Group(const Problem& problem, const int64_t* rows, int64_t count, const Bounds& bounds, float* values, Desk& desk)
      : p_(problem), rows_(rows), count_(count), bounds_(bounds), values_(values), desk_(desk),
        padded_((problem.n_bank + WIDTH - 1) / WIDTH * WIDTH) {
    for (int64_t g = 0; g < count; ++g) {
      queries_[g] = problem.queries + rows[g] * problem.width;
      ids_[g] = problem.identities(0, rows[g]);
    }
  }

  // A row that leaves more than `most` points to be looked at beyond its candidates is not settled.
  void settle(int64_t candidates, int64_t most, uint8_t* settled) {
    choose_candidates(candidates);
    look_at_lists();
    rank();
    for (int64_t g = 0; g < count_; ++g) {
      const bool all_seen = static_cast<int64_t>(desk_.lists[g].size()) < candidates;
      desk_.lists[g].clear();
      if (!all_seen) list_those_as_near(g, most);
      settled[rows_[g]] = static_cast<int64_t>(desk_.lists[g].size()) <= most;
      if (!settled[rows_[g]]) desk_.lists[g].clear();
      if (4 * static_cast<int64_t>(desk_.lists[g].size()) > p_.n_bank) look_at_all(g);
    }
    look_at_lists();
    rank();
  }

 private:
  void choose_candidates(int64_t candidates) {
    float guess = INF;
    for (int64_t g = 0; g < count_; ++g) {
      const float* own = values_ + g * padded_;
      std::vector<uint64_t>& kept = desk_.kept[g];
      const int64_t found = smallest(own, p_.n_bank, candidates, ids_[g], kept, guess);
      std::vector<int64_t>& list = desk_.lists[g];
      list.resize(found);
      float reach = -INF;
      for (int64_t r = 0; r < found; ++r) {
        list[r] = static_cast<uint32_t>(kept[r]);
        reach = std::max(reach, own[list[r]]);
      }
      filled_[g] = 0;
      // the next row, near this one, is likely to have as many points that are not much farther
      if (g + 1 < count_ && found == candidates)
        guess = (reach + bounds_.shift[rows_[g]]) * FARTHER - bounds_.shift[rows_[g + 1]];
    }
  }

  // Distances of the rows to the points in their lists, or to those in any of them: rows near each other share most,
  // which come from memory once for all of them.
  void look_at_lists() {
    int64_t total = 0;
    desk_.shared.clear();
    for (int64_t g = 0; g < count_; ++g) {
      total += static_cast<int64_t>(desk_.lists[g].size());
      for (const int64_t j : desk_.lists[g]) {
        if (!desk_.seen[j]) desk_.shared.push_back(j);
        desk_.seen[j] = 1;
      }
    }
    for (const int64_t j : desk_.shared) desk_.seen[j] = 0;
    const std::vector<int64_t>& shared = desk_.shared;
    const int64_t n_shared = static_cast<int64_t>(shared.size());
    if (count_ == TOGETHER && ALIKE * n_shared < total) {
      desk_.found.resize(TOGETHER * n_shared);
      distances_to_some<TOGETHER>(queries_, p_.bank, p_.width, n_shared, [&](int64_t r) { return shared[r]; },
                                  [&](int g, int64_t r, float found) { desk_.found[g * n_shared + r] = found; });
      for (int64_t g = 0; g < count_; ++g) {
        make_room(g, n_shared);
        for (int64_t r = 0; r < n_shared; ++r) put(g, shared[r], desk_.found[g * n_shared + r]);
      }
      return;
    }
    for (int64_t g = 0; g < count_; ++g) {
      const std::vector<int64_t>& list = desk_.lists[g];
      make_room(g, static_cast<int64_t>(list.size()));
      distances_to_some<1>(queries_ + g, p_.bank, p_.width, static_cast<int64_t>(list.size()),
                           [&](int64_t r) { return list[r]; },
                           [&](int, int64_t r, float found) { put(g, list[r], found); });
    }
  }

  void make_room(int64_t g, int64_t more) {
    desk_.kept[g].resize(std::max<size_t>(desk_.kept[g].size(), filled_[g] + more));
  }

  void put(int64_t g, int64_t j, float distance) {
    float& value = values_[g * padded_ + j];
    if (value == INF || !ids_[g].admits(j)) return;
    value = INF;
    desk_.kept[g][filled_[g]++] = pack(distance, j);
  }

  void rank() {
    for (int64_t g = 0; g < count_; ++g) {
      if (filled_[g] == ranked_[g]) continue;
      desk_.sorter.sort_first(desk_.kept[g].data(), filled_[g], p_.k);
      p_.put(0, rows_[g], desk_.kept[g]);
      filled_[g] = ranked_[g] = std::min(filled_[g], p_.k);
    }
  }

  // The points of a row that are not beyond its k-th neighbour, as far as their values tell; some more than `most` are enough.
  void list_those_as_near(int64_t g, int64_t most) {
    const int64_t row = rows_[g];
    const double kth = p_.distances[row * p_.k + p_.k - 1], shift = bounds_.shift[row];
    const double near = std::sqrt(kth * kth + bounds_.slack[row]) + (bounds_.error ? bounds_.error[row] : 0);
    const vec reach = all(std::nextafter(static_cast<float>(near), INF)), shifts = all(bounds_.shift[row]);
    const vec same = all(std::nextafter(static_cast<float>(near * near - shift), INF));
    const float* own = values_ + g * padded_;
    for (int64_t start = 0; start < p_.n_bank; start += WIDTH) {
      vec bound = same;
      if (bounds_.bank_error) {
        const vec apart = reach + load(bounds_.bank_error + start);
        bound = apart * apart - shifts;
      }
      for (uint32_t bits = bits_at_most(own + start, bound); bits; bits &= bits - 1) {
        const int64_t j = start + __builtin_ctz(bits);
        if (ids_[g].admits(j)) desk_.lists[g].push_back(j);
      }
      if (static_cast<int64_t>(desk_.lists[g].size()) > most) return;
    }
  }

  void look_at_all(int64_t g) {
    desk_.lists[g].clear();
    desk_.whole.assign(padded_, INF);
    distances_to_some<1>(queries_ + g, p_.bank, p_.width, p_.n_bank, [](int64_t j) { return j; },
                         [&](int, int64_t j, float distance) { desk_.whole[j] = distance; });
    p_.from_values(0, rows_[g], desk_.whole.data(), padded_, false, desk_.kept[g], desk_.bounded, desk_.buckets,
                   desk_.sorter);
    std::fill(values_ + g * padded_, values_ + (g + 1) * padded_, INF);
  }

  const Problem& p_;
  const int64_t* rows_;
  int64_t count_;
  const Bounds& bounds_;
  float* values_;
  Desk& desk_;
  int64_t padded_;
  const float* queries_[TOGETHER];
  Identities ids_[TOGETHER];
  int64_t filled_[TOGETHER] = {}, ranked_[TOGETHER] = {};
};

}  // namespace
