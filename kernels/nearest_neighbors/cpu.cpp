// Choose each query's nearest bank points, exactly, nearest first; of equal distances the lower index.
//
// Few coordinates: all distances by direct differences. Many: a matmul done elsewhere gives a value of every point that
// bounds its distance from below; k + spare candidates by value are ranked by direct differences, and so is every point
// left out that may be as near as the k-th.
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
constexpr int64_t TOGETHER = 8;  // rows whose candidates are looked at together

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
  const auto key = [&](int64_t j) { return static_cast<uint64_t>(ordered(values[j])) << 32 | static_cast<uint32_t>(j); };
  float threshold = usual_bound(values, n, k);
  for (;;) {
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
    threshold = INF;
    count = 0;
  }
  if (count > k) {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count);
    count = k;
  }
  return count;
}

// distances of queries to points, all pairs: out (QUERIES, POINTS). A pair has the same bits whatever lies beside it
template <int QUERIES, int POINTS>
void distances_of_pairs(const float* const* queries, const float* const* points, int64_t width, float* out) {
  // sums of so many coordinates are added up, so that wide points round no worse
  constexpr int64_t CHUNK = 64 * WIDTH;
  vec whole[QUERIES][POINTS] = {};
  int64_t t = 0;
  while (t + WIDTH <= width) {
    const int64_t end = std::min(t + CHUNK, width / WIDTH * WIDTH);
    vec sum[QUERIES][POINTS] = {};
    for (; t < end; t += WIDTH) {
      vec at[POINTS];
      for (int p = 0; p < POINTS; ++p) at[p] = load(points[p] + t);
      for (int q = 0; q < QUERIES; ++q)
        for (int p = 0; p < POINTS; ++p) {
          const vec apart = load(queries[q] + t) - at[p];
          sum[q][p] += apart * apart;
        }
    }
    for (int q = 0; q < QUERIES; ++q)
      for (int p = 0; p < POINTS; ++p) whole[q][p] += sum[q][p];
  }
  for (int q = 0; q < QUERIES; ++q)
    for (int p = 0; p < POINTS; ++p) {
      float rest = 0;
      for (int64_t u = t; u < width; ++u) rest += (queries[q][u] - points[p][u]) * (queries[q][u] - points[p][u]);
      out[q * POINTS + p] = std::sqrt(total(whole[q][p]) + rest);
    }
}

// distances of one query to the bank's points at(0), at(1), ..., given to put(r, distance)
template <typename At, typename Put>
void distances_to_some(const float* query, const float* bank, int64_t width, int64_t count, At at, Put put) {
  constexpr int AT_ONCE = 4;
  const float* points[AT_ONCE];
  float out[AT_ONCE];
  for (int64_t r = 0; r < count; r += AT_ONCE) {
    // the last one stands in for those beyond it
    for (int64_t p = 0; p < AT_ONCE; ++p) points[p] = bank + at(std::min(r + p, count - 1)) * width;
    distances_of_pairs<1, AT_ONCE>(&query, points, width, out);
    for (int64_t p = 0; p < std::min<int64_t>(AT_ONCE, count - r); ++p) put(r + p, out[p]);
  }
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

// Some rows of one layer, from a block (n_rows, n_bank) of values: value + shift of the row <= squared distance, but for
// its slack. which (n_rows): the rows of the block; shift, slack, settled (n_queries). A row that leaves more than `most`
// points to be looked at beyond its candidates is not settled.
extern "C" void neighbors_bounded(const float* block, const int64_t* which, int64_t n_rows, const float* shift,
                                     const float* slack, const float* queries, const float* bank,
                                     const int64_t* query_ids, const int64_t* bank_ids, int64_t n_queries, int64_t n_bank,
                                     int64_t width, int64_t k, int64_t candidates, int64_t most, uint8_t* settled,
                                     float* distances, int64_t* indices, int32_t threads) {
  const Problem problem{queries, bank, nullptr, query_ids, bank_ids, 1, n_queries, n_bank, width, k, 1, distances, indices};
  const int64_t padded = (n_bank + WIDTH - 1) / WIDTH * WIDTH;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> values(TOGETHER * padded, INF), found;
    std::vector<uint64_t> kept[TOGETHER];
    for (auto& own : kept) own.resize(2 * candidates + 2 * WIDTH);
    std::vector<int64_t> shared, left;
    std::vector<uint8_t> seen(n_bank, 0);
    Buckets buckets;
#pragma omp for schedule(dynamic, 2)
    for (int64_t task = 0; task < n_rows; task += TOGETHER) {
      const int64_t rows = std::min(TOGETHER, n_rows - task);
      int64_t counts[TOGETHER];
      const float* own[TOGETHER];
      shared.clear();
      for (int64_t g = 0; g < rows; ++g) {
        float* of_row = values.data() + g * padded;
        const int64_t row = which[task + g];
        own[g] = queries + row * width;
        std::copy(block + (task + g) * n_bank, block + (task + g + 1) * n_bank, of_row);
        counts[g] = smallest(of_row, n_bank, candidates, problem.identities(0, row), kept[g]);
        for (int64_t r = 0; r < counts[g]; ++r) {
          const uint32_t j = static_cast<uint32_t>(kept[g][r]);
          if (!seen[j]) shared.push_back(j);
          seen[j] = 1;
        }
      }
      for (const int64_t j : shared) seen[j] = 0;
      // rows near each other share their candidates, which come from memory once for all of them
      const int64_t n_shared = static_cast<int64_t>(shared.size());
      const bool together = rows == TOGETHER && n_shared < 2 * candidates;
      if (together) {
        found.resize(n_shared * TOGETHER);
        for (int64_t r = 0; r < n_shared; ++r) {
          const float* point = bank + shared[r] * width;
          distances_of_pairs<TOGETHER, 1>(own, &point, width, found.data() + r * TOGETHER);
        }
      }
      for (int64_t g = 0; g < rows; ++g) {
        const int64_t row = which[task + g];
        const Identities ids = problem.identities(0, row);
        float* of_row = values.data() + g * padded;
        std::vector<uint64_t>& pairs = kept[g];
        const bool all_seen = counts[g] < candidates;
        int64_t count = counts[g];
        if (together) {
          pairs.resize(std::max<size_t>(pairs.size(), n_shared));
          count = 0;
          for (int64_t r = 0; r < n_shared; ++r)
            if (ids.admits(shared[r])) {
              of_row[shared[r]] = INF;
              pairs[count++] = pack(found[r * TOGETHER + g], shared[r]);
            }
        } else {
          const auto candidate = [&](int64_t r) { return static_cast<int64_t>(static_cast<uint32_t>(pairs[r])); };
          distances_to_some(own[g], bank, width, count, candidate, [&](int64_t r, float distance) {
            of_row[candidate(r)] = INF;
            pairs[r] = pack(distance, candidate(r));
          });
        }
        problem.put(0, row, pairs, count);
        settled[row] = 1;
        if (all_seen) continue;
        const float kth = distances[row * k + k - 1];
        const float bound = std::nextafter(kth * kth - shift[row] + slack[row], INF);
        left.clear();
        for (int64_t start = 0; start < n_bank; start += WIDTH)
          for (uint32_t bits = bits_below(of_row + start, bound); bits; bits &= bits - 1) {
            const int64_t j = start + __builtin_ctz(bits);
            if (ids.admits(j)) left.push_back(j);
          }
        const int64_t n_left = static_cast<int64_t>(left.size());
        if (n_left > most) {
          settled[row] = 0;
        } else if (4 * n_left > n_bank) {
          const auto every = [](int64_t j) { return j; };
          std::vector<float> whole(padded, INF);
          distances_to_some(own[g], bank, width, n_bank, every, [&](int64_t j, float distance) { whole[j] = distance; });
          problem.from_values(0, row, whole, pairs, buckets);
        } else if (n_left > 0) {
          pairs.resize(std::max<size_t>(pairs.size(), count + n_left));
          distances_to_some(own[g], bank, width, n_left, [&](int64_t r) { return left[r]; },
                            [&](int64_t r, float distance) { pairs[count + r] = pack(distance, left[r]); });
          problem.put(0, row, pairs, count + n_left);
        }
      }
    }
  }
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
