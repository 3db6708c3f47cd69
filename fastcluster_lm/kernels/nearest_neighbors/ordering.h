// Put values and their places in order; it chooses none.
#pragma once
#include <algorithm>
#include <array>
#include <vector>

#include "vectors.h"

namespace {

// a distance and an index in one number that sorts as the pair does; distances are never negative
uint64_t pack(float distance, int64_t index) {
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(index);
}

void unpack(uint64_t pair, float* distance, int64_t* index) {
  const uint32_t bits = static_cast<uint32_t>(pair >> 32);
  std::memcpy(distance, &bits, sizeof bits);
  *index = static_cast<int64_t>(pair & 0xffffffffu);
}

// Puts values in order.
class Sorter {
 public:
  static constexpr int64_t MOST = 256;  // values that are put in order by their ranks

  // The first k of some pairs, or all; those beyond stay as they were.
  void sort_first(uint64_t* pairs, int64_t count, int64_t k) {
    k = std::min(k, count);
    if (count > MOST || !by_rank(pairs, count, k)) std::partial_sort(pairs, pairs + k, pairs + count);
  }

  // The first k of some values, or all, and their places, which ascend; of equal values the lower place comes first.
  void put_first(const float* values, const int32_t* places, int64_t count, int64_t k, float* first, int64_t* at) {
    k = std::min(k, count);
    if (count > MOST) {
      pairs_.resize(count);
      for (int64_t r = 0; r < count; ++r) pairs_[r] = pack(values[r], places[r]);
      std::partial_sort(pairs_.begin(), pairs_.begin() + k, pairs_.end());
      for (int64_t r = 0; r < k; ++r) unpack(pairs_[r], first + r, at + r);
      return;
    }
    rank<true>(values, count);
    for (int64_t r = 0; r < count; ++r) {
      sorted_[ranks_[r]] = values[r];
      sorted_places_[ranks_[r]] = places[r];
    }
    std::copy_n(sorted_, k, first);
    std::copy_n(sorted_places_, k, at);
  }

 private:
  // A pair's place is how many distances are below its own, which has no branches; false where equal ones share a place.
  bool by_rank(uint64_t* pairs, int64_t count, int64_t k) {
    for (int64_t r = 0; r < count; ++r) {
      const uint32_t bits = static_cast<uint32_t>(pairs[r] >> 32);
      std::memcpy(distances_ + r, &bits, sizeof bits);
    }
    rank<false>(distances_, count);
    std::fill(in_order_, in_order_ + count, UINT64_MAX);
    for (int64_t r = 0; r < count; ++r) {
      uint64_t& place = in_order_[ranks_[r]];
      if (place != UINT64_MAX) return false;
      place = pairs[r];
    }
    std::copy(in_order_, in_order_ + k, pairs);
    return true;
  }

  // How many values are below each, and with IN_ORDER how many equal ones stand before it. Values of 0 and more sort as
  // their bits do; they are readable to whole blocks.
  template <bool IN_ORDER>
  void rank(const float* values, int64_t count) {
    constexpr int64_t VECTORS = 4, BLOCK = VECTORS * WIDTH;
    const auto bits = [&](int64_t j) {
      ivec own;
      std::memcpy(&own, values + j, sizeof own);
      return own;
    };
    const auto all_bits = [&](int64_t j) {
      int32_t own;
      std::memcpy(&own, values + j, sizeof own);
      return ivec{} + own;
    };
    // from BLOCK - 1 - t on: 1 for those behind place t of the block
    static const std::array<int32_t, 2 * BLOCK> behind = [] {
      std::array<int32_t, 2 * BLOCK> flags{};
      std::fill(flags.begin() + BLOCK, flags.end(), 1);
      return flags;
    }();
    for (int64_t r = 0; r < count; r += BLOCK) {
      ivec own[VECTORS], below[VECTORS] = {};
      for (int64_t v = 0; v < VECTORS; ++v) own[v] = bits(r + v * WIDTH);
      const int64_t end = std::min(r + BLOCK, count);
      int64_t j = 0;
      for (; IN_ORDER && j < r; ++j) {
        const ivec other = all_bits(j);
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) below[v] -= other <= own[v];
      }
      for (; IN_ORDER && j < end; ++j) {
        const ivec other = all_bits(j);
        const int32_t* flags = behind.data() + BLOCK - 1 - (j - r);
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) {
          ivec one;
          std::memcpy(&one, flags + v * WIDTH, sizeof one);
          below[v] -= other < own[v] + one;
        }
      }
      for (; j < count; ++j) {
        const ivec other = all_bits(j);
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; ++v) below[v] -= other < own[v];
      }
      std::memcpy(ranks_ + r, below, sizeof below);
    }
  }

  float distances_[MOST], sorted_[MOST];
  int32_t ranks_[MOST], sorted_places_[MOST];
  uint64_t in_order_[MOST];
  std::vector<uint64_t> pairs_;
};

}  // namespace
