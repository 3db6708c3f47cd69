// Choose each query's nearest bank points, exactly, nearest first; of equal distances the lower index.
//
// Few coordinates: all distances by direct differences. Many: a matmul done elsewhere proposes k + spare candidates,
// which are ranked by direct differences; where a point left out may be as near as the k-th, the whole row is computed.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// a distance and an index in one number that sorts as the pair does; distances are never negative
uint64_t pack(float distance, int64_t index) {
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(index);
}

// a float as an unsigned number of the same order, negative ones too
uint32_t ordered(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// one bit for each of a vector of values that is below
uint32_t bits_below(const float* values, float threshold) {
  const ivec below = load(values) < all(threshold);
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)below));
#else
  uint32_t bits = 0;
  for (int64_t lane = 0; lane < WIDTH; ++lane) bits |= (below[lane] & 1u) << lane;
  return bits;
#endif
}

struct Identities {
  const int64_t* bank;  // nullptr: all are admissible
  int64_t query;
  bool admits(int64_t j) const { return !bank || bank[j] != query; }
};

constexpr int64_t FEW = 16;

// The k smallest admissible values, unsorted; values are padded with infinity to whole vectors.
// kept holds at least 2 k + 8 places; returns how many were found.
int64_t smallest(const float* values, int64_t n, int64_t k, const Identities& ids, std::vector<uint64_t>& kept) {
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
  float threshold = INF;
  const auto key = [&](int64_t j) { return static_cast<uint64_t>(ordered(values[j])) << 32 | static_cast<uint32_t>(j); };
  for (int64_t start = 0; start < n; start += WIDTH) {
    if (!bits_below(values + start, threshold)) continue;
    for (int64_t j = start; j < start + WIDTH; ++j) {
      // a later point of equal value loses to those kept
      if (values[j] < threshold && ids.admits(j)) kept[count++] = key(j);
    }
    if (count >= 2 * k) {
      std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count);
      count = k;
      threshold = values[static_cast<uint32_t>(kept[k - 1])];
    }
  }
  if (count > k) {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count);
    count = k;
  }
  return count;
}

float distance(const float* a, const float* b, int64_t width) {
  vec sum[4] = {};
  int64_t t = 0;
  for (; t + 4 * WIDTH <= width; t += 4 * WIDTH)
    for (int64_t part = 0; part < 4; ++part) {
      const vec apart = load(a + t + part * WIDTH) - load(b + t + part * WIDTH);
      sum[part] += apart * apart;
    }
  float rest = 0;
  for (; t < width; ++t) rest += (a[t] - b[t]) * (a[t] - b[t]);
  return std::sqrt(total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest);
}

// distances of one query to all points, whose coordinates lie one after the other: columns (width, padded)
void distances_to_all(const float* query, const float* columns, int64_t n, int64_t padded, int64_t width, float* out) {
  constexpr int64_t AT_ONCE = 4;
  for (int64_t start = 0; start < padded; start += AT_ONCE * WIDTH) {
    const int64_t parts = std::min(AT_ONCE, (padded - start) / WIDTH);
    vec sum[AT_ONCE] = {};
    if (parts == AT_ONCE) {
      for (int64_t t = 0; t < width; ++t) {
        const vec q = all(query[t]);
        const float* c = columns + t * padded + start;
#pragma GCC unroll 4
        for (int64_t part = 0; part < AT_ONCE; ++part) {
          const vec apart = q - load(c + part * WIDTH);
          sum[part] += apart * apart;
        }
      }
    } else {
      for (int64_t t = 0; t < width; ++t)
        for (int64_t part = 0; part < parts; ++part) {
          const vec apart = all(query[t]) - load(columns + t * padded + start + part * WIDTH);
          sum[part] += apart * apart;
        }
    }
    for (int64_t part = 0; part < parts; ++part) store(out + start + part * WIDTH, square_root(sum[part]));
  }
  for (int64_t j = n; j < padded; ++j) out[j] = INF;
}

// The k smallest admissible values in order, for k a large part of n: bucketed by value, then sorted within buckets.
// values (whole vectors, padded with infinity) lose those that are not admissible; returns how many were found.
class Buckets {
 public:
  int64_t smallest(std::vector<float>& values, int64_t n, int64_t k, const Identities& ids, std::vector<uint64_t>& kept) {
    if (ids.bank)
      for (int64_t j = 0; j < n; ++j) values[j] = ids.bank[j] != ids.query ? values[j] : INF;
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
};

struct Problem {
  const float *queries, *bank, *columns;
  const int64_t *query_ids, *bank_ids;
  int64_t layers, n_queries, n_bank, width, k, id_layers;
  float* distances;
  int64_t* indices;

  Identities identities(int64_t layer, int64_t row) const {
    if (!bank_ids) return {nullptr, 0};
    const int64_t own = id_layers > 1 ? layer : 0;
    return {bank_ids + own * n_bank, query_ids[own * n_queries + row]};
  }

  void put(int64_t layer, int64_t row, std::vector<uint64_t>& pairs, int64_t count, bool sorted = false) const {
    if (!sorted) std::sort(pairs.begin(), pairs.begin() + count);
    const int64_t at = (layer * n_queries + row) * k;
    for (int64_t r = 0; r < k; ++r) {
      const uint32_t bits = static_cast<uint32_t>(pairs[r] >> 32);
      std::memcpy(distances + at + r, &bits, sizeof bits);
      indices[at + r] = static_cast<int64_t>(pairs[r] & 0xffffffffu);
    }
  }

  void from_values(int64_t layer, int64_t row, std::vector<float>& values, std::vector<uint64_t>& kept,
                   Buckets& buckets) const {
    if (k > FEW && n_bank <= 8 * k) {
      put(layer, row, kept, buckets.smallest(values, n_bank, k, identities(layer, row), kept), true);
      return;
    }
    const int64_t count = smallest(values.data(), n_bank, k, identities(layer, row), kept);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t j = static_cast<uint32_t>(kept[r]);
      kept[r] = pack(values[j], j);
    }
    put(layer, row, kept, count);
  }
};

}  // namespace

// All rows by direct differences. columns (layers, width, padded), the bank's coordinates one after the other
extern "C" void neighbors_direct(const float* queries, const float* columns, const int64_t* query_ids,
                                 const int64_t* bank_ids, int64_t id_layers, int64_t layers, int64_t n_queries,
                                 int64_t n_bank, int64_t padded, int64_t width, int64_t k, float* distances,
                                 int64_t* indices, int32_t threads) {
  const Problem problem{queries, nullptr, columns, query_ids, bank_ids, layers, n_queries, n_bank, width, k, id_layers,
                        distances, indices};
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> values(padded);
    std::vector<uint64_t> kept(2 * k + 2 * WIDTH);
    Buckets buckets;
#pragma omp for schedule(dynamic, 16)
    for (int64_t task = 0; task < layers * n_queries; ++task) {
      const int64_t layer = task / n_queries, row = task % n_queries;
      distances_to_all(queries + task * width, columns + layer * width * padded, n_bank, padded, width, values.data());
      problem.from_values(layer, row, values, kept, buckets);
    }
  }
}

// Rows first .. first + rows of each layer, from a block (layers, rows, n_bank) of approximate squared distances less
// the query's own square. query_sq (layers, n_queries), bank_sq_most (layers): squares of the centred points; relative:
// the block's rounding as a share of their sum. Returns how many rows had to be computed whole.
extern "C" int64_t neighbors_ranked(const float* block, const float* queries, const float* bank, const float* query_sq,
                                    const float* bank_sq_most, const int64_t* query_ids, const int64_t* bank_ids,
                                    int64_t id_layers, int64_t layers, int64_t n_queries, int64_t n_bank, int64_t width,
                                    int64_t k, int64_t candidates, int64_t first, int64_t rows, float relative,
                                    float* distances, int64_t* indices, int32_t threads) {
  const Problem problem{queries, bank, nullptr, query_ids, bank_ids, layers, n_queries, n_bank, width, k, id_layers,
                        distances, indices};
  const int64_t padded = (n_bank + WIDTH - 1) / WIDTH * WIDTH;
  int64_t whole = 0;
#pragma omp parallel num_threads(threads) reduction(+ : whole)
  {
    std::vector<float> values(padded, INF);
    std::vector<uint64_t> kept(2 * candidates + 2 * WIDTH);
    Buckets buckets;
#pragma omp for schedule(dynamic, 16)
    for (int64_t task = 0; task < layers * rows; ++task) {
      const int64_t layer = task / rows, row = first + task % rows;
      const float *query = queries + (layer * n_queries + row) * width, *points = bank + layer * n_bank * width;
      const Identities ids = problem.identities(layer, row);
      std::copy(block + task * n_bank, block + (task + 1) * n_bank, values.begin());
      const int64_t count = smallest(values.data(), n_bank, candidates, ids, kept);
      float farthest = -INF;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t j = static_cast<uint32_t>(kept[r]);
        farthest = std::max(farthest, values[j]);
        kept[r] = pack(distance(query, points + j * width, width), j);
      }
      problem.put(layer, row, kept, count);
      const float own = query_sq[layer * n_queries + row];
      const float kth = distances[(layer * n_queries + row) * k + k - 1];
      const bool all_seen = count < candidates;
      if (!all_seen && kth * kth >= farthest + own - relative * (own + bank_sq_most[layer])) {
        for (int64_t j = 0; j < n_bank; ++j) values[j] = distance(query, points + j * width, width);
        problem.from_values(layer, row, values, kept, buckets);
        ++whole;
      }
    }
  }
  return whole;
}

// How many values of each row are below each of its thresholds: values (rows, n), thresholds, counts (rows, k)
extern "C" void count_below(const float* values, const float* thresholds, int64_t rows, int64_t n, int64_t k,
                            int64_t* counts, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t place = 0; place < k; ++place) {
      const float* value = values + row * n;
      const float threshold = thresholds[row * k + place];
      ivec below = {};
      int64_t j = 0, count = 0;
      for (; j + WIDTH <= n; j += WIDTH) below -= load(value + j) < all(threshold);
      for (int64_t lane = 0; lane < WIDTH; ++lane) count += below[lane];
      for (; j < n; ++j) count += value[j] < threshold;
      counts[row * k + place] = count;
    }
}
