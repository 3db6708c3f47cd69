// Eight floats or four doubles at a time in the compilers' own vector types, for the CPU kernels; no library is needed.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef double doubles __attribute__((vector_size(32)));
constexpr int64_t WIDTH = 8;

static inline vec all(float v) { return vec{v, v, v, v, v, v, v, v}; }

static inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The same vector, kept in a register: else a compiler may load it again wherever it is used, until loads are what is waited
// for.
static inline vec in_register(vec v) {
#if defined(__AVX512VL__)
  __asm__("" : "+v"(v));
#elif defined(__AVX__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// Lanes of two vectors, the second one's counted on from the first one's.
static inline vec shuffle(vec one, vec other, ivec lanes) {
#if defined(__clang__)
  // without __builtin_shuffle; lanes that are known become one instruction all the same
  vec out = {};
  for (int64_t lane = 0; lane < WIDTH; ++lane)
    out[lane] = lanes[lane] < WIDTH ? one[lanes[lane]] : other[lanes[lane] - WIDTH];
  return out;
#else
  return __builtin_shuffle(one, other, lanes);
#endif
}

static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

static inline doubles load(const double* p) {
  doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(double* p, doubles v) { std::memcpy(p, &v, sizeof v); }

// four floats of a vector in float64
static inline doubles low_half(vec v) { return doubles{v[0], v[1], v[2], v[3]}; }

static inline doubles high_half(vec v) { return doubles{v[4], v[5], v[6], v[7]}; }

// the squared distance of a point from a place in float64: four sums side by side, in an order that no compiler changes
template <class Number>
static inline double squared_distance(const Number* x, const double* place, int64_t width) {
  double part[4] = {};
  int64_t t = 0;
  for (; t + 4 <= width; t += 4)
    for (int64_t lane = 0; lane < 4; ++lane) {
      const double apart = x[t + lane] - place[t + lane];
      part[lane] += apart * apart;
    }
  for (; t < width; ++t) part[0] += (x[t] - place[t]) * (x[t] - place[t]);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

static inline float total(vec v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

// Write the lanes of a vector whose bit is set, one after the other, and their places from `first` on; says how many. More
// may be written, up to WIDTH.
static inline int64_t keep_lanes(vec own, uint32_t bits, int32_t first, float* values, int32_t* places) {
#if defined(__AVX512VL__)
  const __m256i lanes = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  _mm256_storeu_ps(values, _mm256_maskz_compress_ps(static_cast<__mmask8>(bits), (__m256)own));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(places), _mm256_maskz_compress_epi32(static_cast<__mmask8>(bits), lanes));
  return __builtin_popcount(bits);
#else
  // a place is written until a lane stays there: no branch to mispredict
  int64_t held = 0;
  for (int64_t lane = 0; lane < WIDTH; ++lane) {
    values[held] = own[lane];
    places[held] = first + static_cast<int32_t>(lane);
    held += bits >> lane & 1;
  }
  return held;
#endif
}

// one bit for each lane that is true
static inline uint32_t bits_of(ivec lanes) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)lanes));
#else
  uint32_t bits = 0;
  for (int64_t lane = 0; lane < WIDTH; ++lane) bits |= (lanes[lane] & 1u) << lane;
  return bits;
#endif
}

// 1 / d: on x86 the estimate of 12 bits and one step of Newton's method, which leaves 2e-7 of relative error
static inline vec inverse(vec d) {
#if defined(__AVX__)
  vec r = (vec)_mm256_rcp_ps((__m256)d);
  return r * (all(2.0f) - d * r);
#else
  return all(1.0f) / d;
#endif
}

static inline vec square_root(vec v) {
#if defined(__AVX__)
  return (vec)_mm256_sqrt_ps((__m256)v);
#else
  for (int64_t lane = 0; lane < WIDTH; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
#endif
}

// exp(x) for x <= 0: 2^n times a polynomial of degree 6 on |r| <= log(2) / 2; below -87 it is that of -87
static inline vec exp_of_negative(vec x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest whole number
  const vec shifted = x * all(1.44269504f) + magic;
  const vec n = shifted - magic;
  const vec r = (x - n * all(0.693359375f)) + n * all(2.12194440e-4f);
  vec p = all(1.0f / 720);
  p = p * r + all(1.0f / 120);
  p = p * r + all(1.0f / 24);
  p = p * r + all(1.0f / 6);
  p = p * r + all(0.5f);
  p = p * r + all(1.0f);
  p = p * r + all(1.0f);
  ivec exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - 0x4B400000 + 127) << 23;
  vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

// log(x) for normal x > 0: the exponent, and the series of 2 artanh((m - 1) / (m + 1)) for the rest, m within 1/sqrt(2)
// and sqrt(2); the first term left out is below 2e-8
static inline vec log_of_positive(vec x) {
  ivec bits;
  std::memcpy(&bits, &x, sizeof bits);
  const ivec exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  vec m;
  std::memcpy(&m, &bits, sizeof m);
  const vec t = (m - all(1.0f)) / (m + all(1.0f)), square = t * t;
  vec p = all(1.0f / 9);
  p = p * square + all(1.0f / 7);
  p = p * square + all(1.0f / 5);
  p = p * square + all(1.0f / 3);
  p = p * square + all(1.0f);
  return __builtin_convertvector(exponent, vec) * all(0.693147181f) + all(2.0f) * t * p;
}
