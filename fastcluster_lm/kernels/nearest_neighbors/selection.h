// Choose the smallest of many values, with their places; it computes no distance.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ordering.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// a float as an unsigned number of the same order, negative ones too
uint32_t ordered(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

uint32_t bits_below(const float* values, float threshold) { return bits_of(load(values) < all(threshold)); }

uint32_t bits_at_most(const float* values, vec bounds) { return bits_of(load(values) <= bounds); }

struct Identities {
  const int32_t* bank;  // nullptr: all are admissible
  int32_t query;
  bool admits(int64_t j) const { return !bank || bank[j] != query; }

  // Make the values of points that are not admissible infinite.
  void forbid(float* values, int64_t n) const {
    if (!bank) return;
    int64_t j = 0;
    for (; j + WIDTH <= n; j += WIDTH) {
      ivec ids;
      std::memcpy(&ids, bank + j, sizeof ids);
      const ivec same = ids == ivec{} + query;
      store(values + j, same ? all(INF) : load(values + j));
    }
    for (; j < n; ++j) values[j] = bank[j] == query ? INF : values[j];
  }
};

constexpr int64_t FEW = 16;

// A value that somewhat more than k of n values are likely below, by a sample of them: a first guess that saves work
float usual_bound(const float* values, int64_t n, int64_t k) {
  constexpr int64_t SAMPLE = 256;
  const int64_t rank = SAMPLE * k * 5 / 4 / n + 2;
  if (rank >= SAMPLE / 2) return INF;
  float sample[SAMPLE];
  for (int64_t s = 0; s < SAMPLE; ++s) sample[s] = values[s * n / SAMPLE];
  std::nth_element(sample, sample + rank, sample + SAMPLE);
  return sample[rank];
}

// The k smallest admissible values, unsorted; values are padded with infinity to whole vectors.
// kept holds at least 2 k + 8 places; returns how many were found. guess: a value that k are thought to be below, or
// infinity; the result does not depend on it
int64_t smallest(const float* values, int64_t n, int64_t k, const Identities& ids, std::vector<uint64_t>& kept,
                 float guess = INF) {
  int64_t count = 0;
  if (k <= FEW) {
    // a list in order, so that its last value turns most points away
    float least[FEW];
    int64_t at[FEW];
    for (int64_t start = 0; start < n; start += WIDTH) {
      uint32_t bits = bits_below(values + start, count < k ? INF : least[k - 1]);
      for (; bits; bits &= bits - 1) {
        const int64_t j = start + __builtin_ctz(bits);
        // the last one may have come down since; a later point of equal value loses to those kept
        if ((count == k && values[j] >= least[k - 1]) || !ids.admits(j)) continue;
        int64_t place = count < k ? count++ : k - 1;
        for (; place > 0 && least[place - 1] > values[j]; --place) {
          least[place] = least[place - 1];
          at[place] = at[place - 1];
        }
        least[place] = values[j];
        at[place] = j;
      }
    }
    for (int64_t r = 0; r < count; ++r) kept[r] = static_cast<uint64_t>(at[r]);
    return count;
  }
  const auto key = [&](int64_t j) { return static_cast<uint64_t>(ordered(values[j])) << 32 | static_cast<uint32_t>(j); };
  float threshold = guess < INF ? guess : usual_bound(values, n, k);
  for (;;) {
    const float tried = threshold;
    for (int64_t start = 0; start < n; start += WIDTH) {
      for (uint32_t bits = bits_below(values + start, threshold); bits; bits &= bits - 1) {
        const int64_t j = start + __builtin_ctz(bits);
        if (ids.admits(j)) kept[count++] = key(j);
      }
      if (count >= 2 * k) {
        std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count);
        count = k;
        // a later point of equal value loses to those kept
        threshold = values[static_cast<uint32_t>(kept[k - 1])];
      }
    }
    // too few below the bound: all may be among the smallest
    if (count >= k || threshold == INF) break;
    threshold = tried == guess ? usual_bound(values, n, k) : INF;
    guess = INF;
    count = 0;
  }
  if (count > k) {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count);
    count = k;
  }
  return count;
}

// Chooses by a bound that few more than k of the values are at most.
class Bounded {
 public:
  // All finite admissible values (whole vectors, infinite beyond n) up to the k-th smallest, and few more; says how many.
  // Of squares it gives the roots, and all whose root may be that of the k-th.
  int64_t smallest(const float* values, int64_t n, int64_t padded, int64_t k, const Identities& ids, bool squared) {
    float bound = k <= FEW ? bound_of_few(values, n, padded, k, ids) : bound_of_many(values, n, padded, k, ids);
    if (squared) bound *= 1 + SAME_ROOT;
    return keep(admitted_.data(), padded, bound, squared);
  }

  // All values, admissible or not, up to the k-th smallest under each of some sets of identities, k <= FEW.
  int64_t smallest_of_each(const float* values, int64_t n, int64_t padded, int64_t k, const std::vector<Identities>& sets,
                           bool squared) {
    float bound = -INF;
    for (const Identities& ids : sets) bound = std::max(bound, bound_of_few(values, n, padded, k, ids));
    if (squared) bound *= 1 + SAME_ROOT;
    return keep(values, padded, bound, squared);
  }

  // What was kept, in ascending order of the place.
  const float* values() const { return values_.data(); }
  const int32_t* places() const { return places_.data(); }

 private:
  // squares with one root in float32 differ by less: 2^-22 of them, and the rounding of this product
  static constexpr float SAME_ROOT = 5e-7f;

  static uint32_t bits_up_to(const float* values, float bound) {
    return bound < INF ? bits_at_most(values, all(bound)) : bits_below(values, INF);
  }

  int64_t keep(const float* values, int64_t padded, float bound, bool squared) {
    values_.resize(padded + 4 * WIDTH);
    places_.resize(padded + WIDTH);
    int64_t count = 0;
    for (int64_t start = 0; start < padded; start += WIDTH) {
      const float* own = values + start;
      const int32_t first = static_cast<int32_t>(start);
      count += keep_lanes(load(own), bits_up_to(own, bound), first, values_.data() + count, places_.data() + count);
    }
    if (squared)
      for (int64_t r = 0; r < count; r += WIDTH) store(values_.data() + r, square_root(load(values_.data() + r)));
    return count;
  }

  // Pass over the values, LANES vectors at a time, and give take(lane, value) each; those that are not admissible become
  // infinite. A lane is known when this is compiled, so that what is kept of one stays in a register.
  template <int64_t LANES, typename Take>
  void admit(const float* values, int64_t n, int64_t padded, const Identities& ids, Take take) {
    admitted_.resize(padded);
    const ivec query = ivec{} + ids.query;
    const auto pass = [&](int64_t at, int64_t v, const int32_t* identities) {
      vec value = load(values + at);
      if (identities) {
        ivec own;
        std::memcpy(&own, identities, sizeof own);
        value = own == query ? all(INF) : value;
      }
      store(admitted_.data() + at, value);
      take(v, value);
    };
    int64_t start = 0;
    for (; start + LANES * WIDTH <= n; start += LANES * WIDTH)
#pragma GCC unroll 4
      for (int64_t v = 0; v < LANES; ++v) pass(start + v * WIDTH, v, ids.bank ? ids.bank + start + v * WIDTH : nullptr);
#pragma GCC unroll 4
    for (int64_t v = 0; v < LANES; ++v) {
      const int64_t at = start + v * WIDTH;
      if (at >= padded) break;
      // beyond the last point values are infinite, and there are no identities
      int32_t last[WIDTH];
      for (int64_t lane = 0; ids.bank && lane < WIDTH; ++lane) last[lane] = at + lane < n ? ids.bank[at + lane] : ids.query;
      pass(at, v, ids.bank ? last : nullptr);
    }
  }

  // A value that k of the values are at most, k <= FEW: more lanes where more are wanted.
  float bound_of_few(const float* values, int64_t n, int64_t padded, int64_t k, const Identities& ids) {
    return k <= WIDTH ? bound_of_lanes<2>(values, n, padded, k, ids) : bound_of_lanes<4>(values, n, padded, k, ids);
  }

  // The k-th smallest of the least values in lanes, of which there are k at least: k values are at most that.
  template <int64_t VECTORS>
  float bound_of_lanes(const float* values, int64_t n, int64_t padded, int64_t k, const Identities& ids) {
    vec least[VECTORS];
    std::fill_n(least, VECTORS, all(INF));
    admit<VECTORS>(values, n, padded, ids, [&](int64_t v, vec value) { least[v] = value < least[v] ? value : least[v]; });
    // the largest of them that fewer than k others are below
    float of_lanes[VECTORS * WIDTH];
    std::memcpy(of_lanes, least, sizeof of_lanes);
    vec largest = all(-INF);
    for (int64_t v = 0; v < VECTORS; ++v) {
      ivec below = {};
      for (int64_t lane = 0; lane < VECTORS * WIDTH; ++lane) below -= all(of_lanes[lane]) < least[v];
      const vec counted = below < ivec{} + static_cast<int32_t>(k) ? least[v] : all(-INF);
      largest = counted > largest ? counted : largest;
    }
    float bound = largest[0];
    for (int64_t lane = 1; lane < WIDTH; ++lane) bound = std::max(bound, largest[lane]);
    return bound;
  }

  // A value that k of the values are at most and few more, found by counting: between bounds of which fewer are below the
  // lower one, from the last row's on, since rows of one layer lie alike.
  float bound_of_many(const float* values, int64_t n, int64_t padded, int64_t k, const Identities& ids) {
    vec lows = all(INF), highs = all(-INF);
    admit<2>(values, n, padded, ids, [&](int64_t, vec value) {
      lows = value < lows ? value : lows;
      const vec finite = value < all(INF) ? value : all(-INF);
      highs = finite > highs ? finite : highs;
    });
    float low = lows[0], high = highs[0];
    for (int64_t lane = 1; lane < WIDTH; ++lane) {
      low = std::min(low, lows[lane]);
      high = std::max(high, highs[lane]);
    }
    // all finite values are at most `high`; k of them are, or all there are
    const float least = low, most = high;
    float step = 0.1f;
    float tried = guess_ > low && guess_ < high ? guess_ : low + (high - low) / 2;
    for (int tries = 0; tries < MOST_TRIES && tried > low && tried < high; ++tries) {
      ivec counts = {};
      for (int64_t start = 0; start < padded; start += WIDTH) counts -= load(admitted_.data() + start) <= all(tried);
      int64_t count = 0;
      for (int64_t lane = 0; lane < WIDTH; ++lane) count += counts[lane];
      if (count >= k)
        high = tried;
      else
        low = tried;
      if (count >= k && count <= k + k / 2) break;
      // the step grows until there is a bound on either side
      const float near = count >= k ? tried * (1 - step) : tried * (1 + step);
      const bool between = low > least && high < most;
      tried = between || !(near > low && near < high) ? low + (high - low) / 2 : near;
      step *= 2;
    }
    return guess_ = high;
  }

  static constexpr int MOST_TRIES = 24;
  float guess_ = 0;
  std::vector<float> admitted_, values_;
  std::vector<int32_t> places_;
};

// The k smallest admissible values in order, for k a large part of n: bucketed by value, then sorted within buckets.
class Buckets {
 public:
  // values (padded): whole vectors, padded with infinity; of squares it gives the roots. Returns how many were found.
  int64_t smallest(const float* all_values, int64_t n, int64_t padded, int64_t k, const Identities& ids, bool squared,
                   std::vector<uint64_t>& kept) {
    std::vector<float>& values = admitted_;
    values.assign(all_values, all_values + padded);
    if (squared)
      for (size_t j = 0; j < values.size(); j += WIDTH) store(values.data() + j, square_root(load(values.data() + j)));
    ids.forbid(values.data(), n);
    vec lows = all(INF), highs = all(-INF);
    for (int64_t j = 0; j < n; j += WIDTH) {
      const vec value = load(values.data() + j), finite = value < all(INF) ? value : all(-INF);
      lows = value < lows ? value : lows;
      highs = finite > highs ? finite : highs;
    }
    float low = INF, high = -INF;
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      low = std::min(low, lows[lane]);
      high = std::max(high, highs[lane]);
    }
    if (!(low < INF)) return 0;
    // a value's bucket never falls as the value grows, so that buckets in order hold values in order; the one beyond the
    // last is for infinity
    const float scale = high > low ? (COUNT - 1) / (high - low) : 0.0f;
    places_.resize(values.size());
    for (int64_t j = 0; j < n; j += WIDTH) {
      const vec place = (load(values.data() + j) - all(low)) * all(scale);
      const ivec bucket = __builtin_convertvector(place < all(COUNT) ? place : all(COUNT), ivec);
      std::memcpy(places_.data() + j, &bucket, sizeof bucket);
    }
    std::fill(std::begin(starts_), std::end(starts_), 0);
    for (int64_t j = 0; j < n; ++j) ++starts_[places_[j]];
    int32_t last = COUNT, found = 0, before = 0;
    for (int32_t bucket = 0; bucket <= COUNT; ++bucket) {
      const int32_t size = starts_[bucket];
      starts_[bucket] = before;
      before += size;
      if (found < k && bucket < COUNT) {
        found = before;
        last = bucket;
      }
    }
    // all are put where they belong, those beyond the last bucket too: no branch to mispredict
    if (static_cast<int64_t>(kept.size()) < n) kept.resize(n);
    for (int64_t j = 0; j < n; ++j) kept[starts_[places_[j]]++] = pack(values[j], j);
    // now a bucket's start is its end, and the one before it ends where it began
    for (int32_t bucket = 0, from = 0; bucket <= last; from = starts_[bucket++]) sort(kept.data(), from, starts_[bucket]);
    return std::min<int64_t>(found, k);
  }

 private:
  static void sort(uint64_t* pairs, int32_t from, int32_t to) {
    if (to - from > 32) {
      std::sort(pairs + from, pairs + to);
      return;
    }
    for (int32_t at = from + 1; at < to; ++at) {
      const uint64_t pair = pairs[at];
      int32_t place = at;
      for (; place > from && pairs[place - 1] > pair; --place) pairs[place] = pairs[place - 1];
      pairs[place] = pair;
    }
  }

  static constexpr int32_t COUNT = 256;
  int32_t starts_[COUNT + 1];
  std::vector<int32_t> places_;
  std::vector<float> admitted_;
};

}  // namespace
