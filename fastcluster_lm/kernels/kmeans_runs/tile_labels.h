// The nearest centroid of each point of some tiles, found again among those that moved alone; it moves none.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "nearest.h"
#include "products.h"
#include "tiles.h"

namespace {

// Of each point its cluster, and how near that one and the next are by the values that rank centroids. A centroid that
// stayed where it was has the value that it had, so that a point is compared with those that moved: only if its own went
// farther than the next may be, it is compared with all.
class TileLabels {
 public:
  // Points begin with a cluster beyond the last, infinitely far.
  TileLabels(const Tiles& tiles, const float* X, int64_t k)
      : tiles_(tiles), X_(X), labels_(tiles.count * TILE, static_cast<int32_t>(k)), moves_(k + 1),
        best_(tiles.count * TILE, INF), next_(tiles.count * TILE, INF) {}

  // Look at all points again, once `moved` of the centroids, by rising number, stand elsewhere and `products` holds all
  // of them; at first all have moved. relabel(point, cluster) is called point by point, for some that stay too.
  template <typename Relabel>
  void look(Products& products, const float* centroids, const std::vector<int64_t>& moved, Relabel relabel) {
    if (moved.empty()) return;
    std::fill(moves_.begin(), moves_.end(), 0);
    rows_.clear();
    for (const int64_t c : moved) {
      moves_[c] = -1;
      rows_.push_back(centroids + c * tiles_.width);
    }
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      const int64_t first = tile * TILE, lanes = std::min(TILE, tiles_.n - first);
      const uint32_t changed = compare(tile, products, moved), doubtful = doubts_ & of_first(lanes);
      if (doubtful) settle(products, first, doubtful);
      for (uint32_t left = (changed & of_first(lanes)) | doubtful; left; left &= left - 1) {
        const int64_t i = first + __builtin_ctz(left);
        relabel(i, labels_[i]);
      }
    }
  }

 private:
  static uint32_t of_first(int64_t lanes) { return lanes < 32 ? (1u << lanes) - 1 : ~0u; }

  // Compare a tile's points with the centroids that moved; one bit for each that has another cluster. Those whose own
  // centroid may have been passed by one that did not move are left in doubts_.
  uint32_t compare(int64_t tile, const Products& products, const std::vector<int64_t>& moved) {
    vec least[TILE / WIDTH], second[TILE / WIDTH];
    ivec which[TILE / WIDTH] = {};
    std::fill_n(least, TILE / WIDTH, all(INF));
    std::fill_n(second, TILE / WIDTH, all(INF));
    tiles_.multiply(tile, rows_.data(), static_cast<int64_t>(rows_.size()), [&](int64_t r, const float* product) {
      const vec own = all(products.sq_norm[moved[r]]);
      const ivec number = ivec{} + static_cast<int32_t>(moved[r]);
      for (int64_t v = 0; v < TILE / WIDTH; ++v) {
        const vec value = own - all(2.0f) * load(product + v * WIDTH);
        const ivec less = value < least[v];
        const vec larger = less ? least[v] : value;
        second[v] = larger < second[v] ? larger : second[v];
        least[v] = less ? value : least[v];
        which[v] = less ? number : which[v];
      }
    });
    uint32_t changed = 0;
    doubts_ = 0;
    for (int64_t v = 0; v < TILE / WIDTH; ++v) {
      const int64_t at = tile * TILE + v * WIDTH;
      ivec label, went;
      std::memcpy(&label, labels_.data() + at, sizeof label);
      for (int64_t lane = 0; lane < WIDTH; ++lane) went[lane] = moves_[labels_[at + lane]];
      const vec best = load(best_.data() + at), next = load(next_.data() + at);
      // where the own centroid moved, the others are at `next` or beyond
      const ivec sure = least[v] < next;
      const ivec nearer = least[v] < best || (least[v] == best && which[v] < label);
      const ivec taken = went ? sure : nearer;
      const vec stayed = went ? next : best;
      const vec beyond = taken ? second[v] : least[v], others = went ? next : taken ? best : next;
      store(best_.data() + at, taken ? least[v] : stayed);
      store(next_.data() + at, beyond < others ? beyond : others);
      const ivec now = taken ? which[v] : label;
      std::memcpy(labels_.data() + at, &now, sizeof now);
      changed |= bits_of(now != label) << v * WIDTH;
      doubts_ |= bits_of(went & ~sure) << v * WIDTH;
    }
    return changed;
  }

  // Compare some points of a tile with all centroids.
  void settle(Products& products, int64_t first, uint32_t points) {
    int64_t index[TILE], count = 0;
    for (; points; points &= points - 1) index[count++] = first + __builtin_ctz(points);
    products.values_of(X_, index, count);
    for (int64_t p = 0; p < count; ++p) {
      const Nearest nearest(products.block.data() + p * products.padded, products.padded);
      labels_[index[p]] = nearest.label;
      best_[index[p]] = nearest.best;
      next_[index[p]] = nearest.next;
    }
  }

  const Tiles& tiles_;
  const float* X_;
  std::vector<int32_t> labels_, moves_;
  std::vector<float> best_, next_;
  std::vector<const float*> rows_;
  uint32_t doubts_ = 0;
};

}  // namespace
