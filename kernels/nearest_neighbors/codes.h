// Points as whole numbers of eight bits, and the products of some of them with all; it decides nothing.
#pragma once
#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

// A bank's codes are stored with OFFSET added, so that they have no sign, which the processors' products ask for. Those
// with VNNI sum four products of eight bits as they are; elsewhere two products must fit in sixteen bits.
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
constexpr int32_t QUERY_LEVELS = 127, BANK_LEVELS = 127, OFFSET = 128;
#else
constexpr int32_t QUERY_LEVELS = 127, BANK_LEVELS = 63, OFFSET = 64;
#endif
constexpr int64_t QUAD = 4;               // coordinates that are multiplied together
constexpr int64_t ROWS = 4, GROUPS = 2;   // queries, and vectors of bank points, at once: eight sums in registers

// sums[j] += the four products of quad j of the bank and the query's quad
inline ivec add_products(ivec sums, const uint8_t* bank, const int8_t* query) {
#if defined(__AVX2__)
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bank));
  int32_t quad;
  std::memcpy(&quad, query, sizeof quad);
  const __m256i q = _mm256_set1_epi32(quad);
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return (ivec)_mm256_dpbusd_epi32((__m256i)sums, b, q);
#elif defined(__AVXVNNI__)
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sums, b, q);
#else
  return sums + (ivec)_mm256_madd_epi16(_mm256_maddubs_epi16(b, q), _mm256_set1_epi16(1));
#endif
#else
  for (int64_t lane = 0; lane < WIDTH; ++lane)
    for (int64_t c = 0; c < QUAD; ++c) sums[lane] += static_cast<int32_t>(bank[lane * QUAD + c]) * query[c];
  return sums;
#endif
}

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

// The bank's squares less twice its products with some queries: values (ROWS, padded) of COUNT groups from `first` on.
// The coordinates multiplied are the queries', which may be the first ones of the bank's.
template <int64_t COUNT>
void values_of_groups(const Codes& queries, const int64_t* rows, const Codes& bank, int64_t first, float* const* values) {
  ivec sums[ROWS][COUNT] = {};
  const int8_t* codes[ROWS];
  for (int64_t r = 0; r < ROWS; ++r) codes[r] = queries.query(rows[r]);
  for (int64_t t = 0; t < queries.stride; t += QUAD)
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
      for (int64_t g = 0; g < COUNT; ++g)
        sums[r][g] = add_products(sums[r][g], bank.group(first + g) + t * WIDTH, codes[r] + t);
  for (int64_t r = 0; r < ROWS; ++r)
    for (int64_t g = 0; g < COUNT; ++g) {
      const int64_t j = (first + g) * WIDTH;
      const vec product = __builtin_convertvector(sums[r][g] - OFFSET * queries.sums[rows[r]], vec);
      const vec both = all(2 * queries.scales[rows[r]]) * load(bank.scales + j);
      store(values[r] + j, load(bank.squares + j) - both * product);
    }
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
        out[r] = values + row * padded;
      }
      if (groups - first >= GROUPS)
        values_of_groups<GROUPS>(queries, which, bank, first, out);
      else
        values_of_groups<1>(queries, which, bank, first, out);
    }
}

}  // namespace
