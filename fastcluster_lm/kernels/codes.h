// Points as whole numbers of eight bits, and the products of some of them with all; it decides nothing.
//
// A point lies within a known distance of what its codes say, so that codes bound every distance from both sides,
// whatever they lose. Products of whole numbers are exact: results do not depend on the processor.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

// Processors with VNNI sum four products of eight bits as they are. No named level has it, so that libraries of x86-64-v4
// ask the processor when they are loaded: what is marked WITH_VNNI is compiled for it, and called where it is offered.
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#define WITH_VNNI
bool vnni = true;
#elif defined(__AVX512VL__)
#define WITH_VNNI __attribute__((target("avx512vnni")))
bool vnni = __builtin_cpu_supports("avx512vnni");
#else
constexpr bool vnni = false;
#endif

// A bank's codes are stored with an offset added, so that they have no sign, which the processors' products ask for.
// Without VNNI two products must fit in sixteen bits.
inline int32_t levels_of_bank() { return vnni ? 127 : 63; }
inline int32_t offset_of_bank() { return levels_of_bank() + 1; }
constexpr int32_t QUERY_LEVELS = 127;
constexpr int64_t QUAD = 4;               // coordinates that are multiplied together
constexpr int64_t ROWS = 4, GROUPS = 2;   // queries, and vectors of bank points, at once: eight sums in registers

#if defined(__AVX2__)
inline __m256i quads_of(const uint8_t* bank) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bank)); }

inline __m256i quad_of(const int8_t* query) {
  int32_t quad;
  std::memcpy(&quad, query, sizeof quad);
  return _mm256_set1_epi32(quad);
}
#endif

// add: sums[j] + the four products of quad j of the bank and the query's quad
struct PairProducts {
  static ivec add(ivec sums, const uint8_t* bank, const int8_t* query) {
#if defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(quads_of(bank), quad_of(query));
    return sums + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int64_t lane = 0; lane < WIDTH; ++lane)
      for (int64_t c = 0; c < QUAD; ++c) sums[lane] += static_cast<int32_t>(bank[lane * QUAD + c]) * query[c];
    return sums;
#endif
  }
};

#if defined(WITH_VNNI)
struct QuadProducts {
  WITH_VNNI static ivec add(ivec sums, const uint8_t* bank, const int8_t* query) {
#if defined(__AVX512VL__)
    return (ivec)_mm256_dpbusd_epi32((__m256i)sums, quads_of(bank), quad_of(query));
#else
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sums, quads_of(bank), quad_of(query));
#endif
  }
};
#endif

// what float32 loses of a point when it is moved by an offset, and of the distance between a point and its codes; and
// points next to nothing, which have no inverse in float32
constexpr float ROUNDING = 1e-6f, TINY = 1e-30f;

typedef int8_t bytes __attribute__((vector_size(8)));

// Points in eight bits: scale * codes lies within error of the point; squares are those of scale * codes.
// Queries: codes (n, stride) with sign. A bank: (groups, stride / QUAD, WIDTH, QUAD), OFFSET added.
struct Codes {
  const void* codes;
  const float *scales, *squares, *errors;
  const int32_t* sums;  // of a query's codes
  int64_t n, stride;

  const int8_t* query(int64_t row) const { return static_cast<const int8_t*>(codes) + row * stride; }
  const uint8_t* group(int64_t g) const { return static_cast<const uint8_t*>(codes) + g * stride * WIDTH; }
};

// Room for codes of queries or of a bank.
struct CodeRoom {
  void* codes;
  float *scales, *squares, *errors;
  int32_t* sums;
  int64_t stride;

  // One point's codes, eight at a time at put(t, codes). moved: room for the point in whole vectors, 0 beyond its
  // coordinates; offset: nullptr where the point is not moved
  template <typename Put>
  void encode(int64_t i, const float* point, const float* offset, float* moved, int64_t width, int32_t levels, Put put) {
    vec most = {};
    for (int64_t t = 0; t < width; ++t) moved[t] = offset ? point[t] - offset[t] : point[t];
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec x = load(moved + t), size = x < vec{} ? -x : x;
      most = size > most ? size : most;
    }
    float largest = 0;
    for (int64_t lane = 0; lane < WIDTH; ++lane) largest = std::max(largest, most[lane]);
    const float scale = largest > TINY ? largest / levels : 0, inverse = largest > TINY ? levels / largest : 0;
    // adding 1.5 * 2^23 rounds to the nearest whole number
    const vec magic = all(12582912.0f);
    vec lost = {}, squared = {}, whole = {};
    ivec summed = {};
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec x = load(moved + t), code = (x * all(inverse) + magic) - magic, apart = x - code * all(scale);
      lost += apart * apart;
      squared += code * code;
      whole += x * x;
      const ivec numbers = __builtin_convertvector(code, ivec);
      summed += numbers;
      put(t, __builtin_convertvector(numbers, bytes));
    }
    sums[i] = 0;
    for (int64_t lane = 0; lane < WIDTH; ++lane) sums[i] += summed[lane];
    scales[i] = scale;
    squares[i] = static_cast<float>(static_cast<double>(scale) * scale * total(squared));
    errors[i] = scale > 0 ? std::sqrt(total(lost)) * (1 + 1e-5f) + ROUNDING * std::sqrt(total(whole))
                          : largest * std::sqrt(static_cast<float>(width));
  }

  void put_query(int64_t i, const float* point, const float* offset, float* moved, int64_t width) {
    int8_t* row = static_cast<int8_t*>(codes) + i * stride;
    encode(i, point, offset, moved, width, QUERY_LEVELS,
           [&](int64_t t, bytes numbers) { std::memcpy(row + t, &numbers, std::min(WIDTH, stride - t)); });
  }

  void put_in_bank(int64_t i, const float* point, const float* offset, float* moved, int64_t width) {
    encode(i, point, offset, moved, width, levels_of_bank(), [&](int64_t t, bytes numbers) {
      uint8_t shifted[WIDTH];
      numbers += static_cast<int8_t>(offset_of_bank());
      std::memcpy(shifted, &numbers, sizeof shifted);
      std::memcpy(in_bank(i, t), shifted, QUAD);
      if (t + QUAD < stride) std::memcpy(in_bank(i, t + QUAD), shifted + QUAD, QUAD);
    });
  }

  // what stands in a bank beyond its last point is near nothing
  void pad_bank(int64_t i) {
    for (int64_t t = 0; t < stride; t += QUAD) std::fill(in_bank(i, t), in_bank(i, t) + QUAD, offset_of_bank());
    scales[i] = errors[i] = 0;
    sums[i] = 0;
    squares[i] = std::numeric_limits<float>::infinity();
  }

  uint8_t* in_bank(int64_t i, int64_t t) {
    return static_cast<uint8_t*>(codes) + i / WIDTH * stride * WIDTH + (t / QUAD * WIDTH + i % WIDTH) * QUAD;
  }
};

inline int64_t whole_quads(int64_t width) { return (width + QUAD - 1) / QUAD * QUAD; }

// The bank's squares less twice its products with ROWS queries: values of COUNT groups of the bank from `first` on.
// The coordinates multiplied are the queries', which may be the first ones of the bank's. Unfolded into its callers, which
// may use this kind of products.
template <int64_t COUNT, class Kind>
__attribute__((always_inline)) inline void values_of_groups(const Codes& queries, const int64_t* rows, const Codes& bank,
                                                            int64_t first, float* const* values) {
  ivec sums[ROWS][COUNT] = {};
  const int8_t* codes[ROWS];
  for (int64_t r = 0; r < ROWS; ++r) codes[r] = queries.query(rows[r]);
  for (int64_t t = 0; t < queries.stride; t += QUAD)
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
      for (int64_t g = 0; g < COUNT; ++g)
        sums[r][g] = Kind::add(sums[r][g], bank.group(first + g) + t * WIDTH, codes[r] + t);
  for (int64_t r = 0; r < ROWS; ++r)
    for (int64_t g = 0; g < COUNT; ++g) {
      const int64_t j = (first + g) * WIDTH;
      const vec product = __builtin_convertvector(sums[r][g] - offset_of_bank() * queries.sums[rows[r]], vec);
      const vec both = all(2 * queries.scales[rows[r]]) * load(bank.scales + j);
      store(values[r] + g * WIDTH, load(bank.squares + j) - both * product);
    }
}

#if defined(WITH_VNNI)
template <int64_t COUNT>
WITH_VNNI __attribute__((noinline)) void values_by_vnni(const Codes& queries, const int64_t* rows, const Codes& bank,
                                                        int64_t first, float* const* values) {
  values_of_groups<COUNT, QuadProducts>(queries, rows, bank, first, values);
}
#endif

// The same by the products that this processor has.
template <int64_t COUNT>
void values_of_groups(const Codes& queries, const int64_t* rows, const Codes& bank, int64_t first, float* const* values) {
#if defined(WITH_VNNI)
  if (vnni) return values_by_vnni<COUNT>(queries, rows, bank, first, values);
#endif
  values_of_groups<COUNT, PairProducts>(queries, rows, bank, first, values);
}

// Values of some queries and all of the bank, in panels that stay in the nearest cache: values (count, padded).
void values_of_rows(const Codes& queries, const int64_t* rows, int64_t count, const Codes& bank, float* values) {
  const int64_t groups = (bank.n + WIDTH - 1) / WIDTH, padded = groups * WIDTH;
  for (int64_t first = 0; first < groups; first += GROUPS)
    for (int64_t at = 0; at < count; at += ROWS) {
      int64_t which[ROWS];
      float* out[ROWS];
      for (int64_t r = 0; r < ROWS; ++r) {
        // the last one stands in for those beyond it
        const int64_t row = std::min(at + r, count - 1);
        which[r] = rows[row];
        out[r] = values + row * padded + first * WIDTH;
      }
      if (groups - first >= GROUPS)
        values_of_groups<GROUPS>(queries, which, bank, first, out);
      else
        values_of_groups<1>(queries, which, bank, first, out);
    }
}

}  // namespace

// For tests: turn VNNI off (0) or on again (1), where it is offered; says whether it is used. Codes made before are not
// read rightly after.
extern "C" int32_t use_vnni(int32_t on) {
#if defined(WITH_VNNI)
  static const bool offered = vnni;
  vnni = on && offered;
#endif
  return vnni;
}
