// t-SNE's affinities: weights of a given perplexity, and their symmetrised edges, over all layers.
//
// Source: van der Maaten and Hinton 2008, section 2
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t ALIKE = 32;  // rows of which each vector begins where the one before ended

// Finds the Gaussian weights of as many rows of sorted distances as a vector has lanes, side by side.
class Rows {
 public:
  Rows(int64_t k, float perplexity) : k_(k), target_(all(std::log(perplexity))), sq_dist_(k * WIDTH), weight_(k * WIDTH) {}

  // rows: each row's distances (k) -> weights, a row after the other, of the first `count` rows; guess: log2(precision)
  // to begin with, and what was found
  void find(const float* const* rows, int64_t count, vec* guess, float* weights) {
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      const float* d = rows[lane];
      for (int64_t j = 0; j < k_; ++j) sq_dist_[j * WIDTH + lane] = (d[j] - d[0]) * (d[j] + d[0]);
    }
    vec typical = {};
    for (int64_t j = 0; j < k_; ++j) typical += load(sq_dist_.data() + j * WIDTH);
    const vec unit = typical > vec{} ? all(static_cast<float>(k_)) / typical : all(1.0f);
    for (int64_t j = 0; j < k_; ++j) store(sq_dist_.data() + j * WIDTH, load(sq_dist_.data() + j * WIDTH) * unit);
    const vec share = all(1.0f) / settle(guess);
    for (int64_t j = 0; j < k_; ++j) store(weight_.data() + j * WIDTH, load(weight_.data() + j * WIDTH) * share);
    for (int64_t lane = 0; lane < count; ++lane)
      for (int64_t j = 0; j < k_; ++j) weights[lane * k_ + j] = weight_[j * WIDTH + lane];
  }

 private:
  // 32 halvings of log2(precision) leave 2e-8, below float32's own rounding; Newton's steps need far fewer, and are taken
  // where they stay between the bounds. A row that is settled stays as it is. Returns the sums of the weights
  vec settle(vec* guess) {
    vec low = all(-20), high = all(60), middle = *guess, mass = {};
    ivec done = {};
    for (int step = 0; step < 32; ++step) {
      const vec away = exp_of_negative((middle < vec{} ? middle : -middle) * all(0.693147181f));
      const vec precision = middle < vec{} ? away : all(1.0f) / away;
      vec moment = {}, second = {};
      mass = vec{};
      for (int64_t j = 0; j < k_; ++j) {
        const vec s = load(sq_dist_.data() + j * WIDTH), w = exp_of_negative(s * -precision), first = w * s;
        store(weight_.data() + j * WIDTH, w);
        mass += w;
        moment += first;
        second += first * s;
      }
      const vec mean = moment / mass, excess = log_of_positive(mass) + precision * mean - target_;
      done |= (excess < all(1e-6f)) & (excess > all(-1e-6f));
      if (bits_of(done) == 0xff) break;
      low = excess > vec{} ? middle : low;
      high = excess > vec{} ? high : middle;
      // the entropy falls by precision^2 var(sq_dist) as log(precision) grows by 1
      const vec slope = precision * precision * (second / mass - mean * mean);
      const vec newton = middle + excess / slope * all(1.44269504f);
      const vec next = (newton > low) & (newton < high) ? newton : (low + high) / all(2.0f);
      middle = done ? middle : next;
    }
    *guess = middle;
    return mass;
  }

  int64_t k_;
  vec target_;
  std::vector<float> sq_dist_, weight_;  // a vector of rows for each neighbour
};

// Add what each point gives those it chose, and gets back from them, to a matrix with rows of `stride` floats.
void add_pairs(const int64_t* near, const float* weight, int64_t n, int64_t k, int64_t stride, float* matrix) {
  const float share = static_cast<float>(0.5 / n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t e = i * k; e < (i + 1) * k; ++e) {
      matrix[i * stride + near[e]] += weight[e] * share;
      matrix[near[e] * stride + i] += weight[e] * share;
    }
}

}  // namespace

// The Gaussian weights of each row of sorted distances whose perplexity is the one asked for. distances, weights
// (layers, n, k)
extern "C" void tsne_weights(const float* distances, int64_t layers, int64_t n, int64_t k, float perplexity,
                             float* weights, int32_t threads) {
  const int64_t runs = (n + ALIKE - 1) / ALIKE;
#pragma omp parallel num_threads(threads)
  {
    Rows rows(k, perplexity);
#pragma omp for schedule(static)
    for (int64_t run = 0; run < layers * runs; ++run) {
      // points lie about as densely as others of their layer, whose runs are the same whatever lies beside it
      const int64_t layer = run / runs, from = run % runs * ALIKE, end = std::min(n, from + ALIKE);
      vec guess = {};
      for (int64_t i = from; i < end; i += WIDTH) {
        const int64_t count = std::min(WIDTH, end - i);
        const float* own[WIDTH];
        // the last one stands in for those beyond it
        for (int64_t lane = 0; lane < WIDTH; ++lane)
          own[lane] = distances + (layer * n + i + std::min(lane, count - 1)) * k;
        rows.find(own, count, &guess, weights + (layer * n + i) * k);
      }
    }
  }
}

// The symmetrised affinities of all pairs, 0 where neither chose the other: pairs (layers, padded, padded). Returns how
// many indices are no points; then pairs holds nothing
extern "C" int64_t tsne_pairs(const int64_t* indices, const float* weights, int64_t layers, int64_t n, int64_t k,
                              int64_t padded, float* pairs, int32_t threads) {
  int64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(+ : wrong)
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t* near = indices + layer * n * k;
    int64_t outside = 0;
    for (int64_t e = 0; e < n * k; ++e) outside += near[e] < 0 || near[e] >= n;
    wrong += outside;
    if (outside) continue;
    float* own = pairs + layer * padded * padded;
    std::fill_n(own, padded * padded, 0.0f);
    add_pairs(near, weights + layer * n * k, n, k, padded, own);
  }
  return wrong;
}

// Symmetrised edges, first half: row i holds j where i chose j or j chose i. indices, weights (layers, n, k) ->
// lengths (layers, n) of the rows, and who chose each point, in ascending order, with what weight: choosers, chosen_by
// (layers, n, k), of which those of point i stand from first (layers, n + 1) of i on
extern "C" void tsne_choosers(const int64_t* indices, const float* weights, int64_t layers, int64_t n, int64_t k,
                              int64_t* first, int32_t* choosers, float* chosen_by, int64_t* lengths, int32_t threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t* near = indices + layer * n * k;
    const float* weight = weights + layer * n * k;
    int64_t* from = first + layer * (n + 1);
    int32_t* chooser = choosers + layer * n * k;
    float* by = chosen_by + layer * n * k;
    std::fill(from, from + n + 1, 0);
    for (int64_t e = 0; e < n * k; ++e) ++from[near[e] + 1];
    for (int64_t i = 0; i < n; ++i) from[i + 1] += from[i];
    std::vector<int64_t> next(from, from + n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t e = i * k; e < (i + 1) * k; ++e) {
        const int64_t at = next[near[e]]++;
        chooser[at] = static_cast<int32_t>(i);
        by[at] = weight[e];
      }
    std::vector<int32_t> stamp(n, -1);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t e = i * k; e < (i + 1) * k; ++e) stamp[near[e]] = static_cast<int32_t>(i);
      int64_t length = k;
      for (int64_t at = from[i]; at < from[i + 1]; ++at) length += stamp[chooser[at]] != i;
      lengths[layer * n + i] = length;
    }
  }
}

// Second half: starts (layers * n) say where a row's edges go.
extern "C" void tsne_edges(const int64_t* indices, const float* weights, int64_t layers, int64_t n, int64_t k,
                           const int64_t* first, const int32_t* choosers, const float* chosen_by, const int64_t* starts,
                           int32_t* columns, float* values, int32_t threads) {
  const float share = static_cast<float>(0.5 / n);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t *near = indices + layer * n * k, *from = first + layer * (n + 1);
    // where j stands in the row at hand, if stamp[j] is that row
    std::vector<int32_t> place(n), stamp(n, -1);
    for (int64_t i = 0; i < n; ++i) {
      int32_t *column = columns + starts[layer * n + i], length = 0;
      float* value = values + starts[layer * n + i];
      for (int64_t e = i * k; e < (i + 1) * k; ++e) {
        stamp[near[e]] = static_cast<int32_t>(i);
        place[near[e]] = length;
        column[length] = static_cast<int32_t>(near[e]);
        value[length++] = weights[layer * n * k + e] * share;
      }
      for (int64_t at = from[i]; at < from[i + 1]; ++at) {
        const int32_t j = choosers[layer * n * k + at];
        const float shared = chosen_by[layer * n * k + at] * share;
        if (stamp[j] == i) {
          value[place[j]] += shared;
        } else {
          column[length] = j;
          value[length++] = shared;
        }
      }
    }
  }
}

// The same edges by way of a whole matrix for each layer, which is faster where k is a large part of n. starts
// (layers * n + 1); columns and values have room for 2 n k edges a layer. Returns the number of edges, in
// ascending order of the column within a row
extern "C" int64_t tsne_edges_dense(const int64_t* indices, const float* weights, int64_t layers, int64_t n, int64_t k,
                                    int64_t* starts, int32_t* columns, float* values, int32_t threads) {
  static thread_local std::vector<float> matrices;  // kept, so that its pages are not asked for again and again
  matrices.assign(layers * n * n, 0.0f);
  float* const all_layers = matrices.data();
  starts[0] = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    float* matrix = all_layers + layer * n * n;
    add_pairs(indices + layer * n * k, weights + layer * n * k, n, k, n, matrix);
    for (int64_t i = 0; i < n; ++i) {
      ivec length = {};
      int64_t j = 0, rest = 0;
      for (; j + WIDTH <= n; j += WIDTH) length -= load(matrix + i * n + j) != vec{};
      for (; j < n; ++j) rest += matrix[i * n + j] != 0;
      for (int64_t lane = 0; lane < WIDTH; ++lane) rest += length[lane];
      starts[layer * n + i + 1] = rest;
    }
  }
  for (int64_t row = 0; row < layers * n; ++row) starts[row + 1] += starts[row];
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < layers * n; ++row) {
    // a vector is written where its first value that stays goes, and the next one over what was written beyond the last
    // of them: no branch to mispredict, and room for what is written beyond the row's last edge
    int32_t column[64 + WIDTH];
    float value[64 + WIDTH];
    int64_t at = starts[row], held = 0;
    for (int64_t j = 0; j < n; j += WIDTH) {
      const float* from = all_layers + row * n + j;
      vec own = {};
      if (j + WIDTH <= n)
        own = load(from);
      else
        std::copy_n(from, n - j, reinterpret_cast<float*>(&own));
      held += keep_lanes(own, bits_of(own != vec{}), static_cast<int32_t>(j), value + held, column + held);
      if (held > 64 - WIDTH || j + WIDTH >= n) {
        std::copy_n(column, held, columns + at);
        std::copy_n(value, held, values + at);
        at += held;
        held = 0;
      }
    }
  }
  return starts[layers * n];
}
