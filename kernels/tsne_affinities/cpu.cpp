// t-SNE's affinities: weights of a given perplexity, and their symmetrised edges, over all layers.
//
// Source: van der Maaten and Hinton 2008, section 2
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t ALIKE = 32;  // rows that are settled one after the other, each from where the one before ended

}  // namespace

// The Gaussian weights of each row of sorted distances whose perplexity is the one asked for, by bisection.
// distances, weights (layers, n, k)
extern "C" void tsne_weights(const float* distances, int64_t layers, int64_t n, int64_t k, float perplexity,
                             float* weights, int32_t threads) {
  const int64_t runs = (n + ALIKE - 1) / ALIKE;
  const int64_t padded = (k + WIDTH - 1) / WIDTH * WIDTH;
  const float target = std::log(perplexity);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sq_dist(padded), inside(padded, 0.0f), weight(padded);
    std::fill(inside.begin(), inside.begin() + k, 1.0f);
#pragma omp for schedule(static)
    for (int64_t run = 0; run < layers * runs; ++run) {
      // points lie about as densely as the one before; a layer's runs are the same whatever lies beside it
      const int64_t layer = run / runs, from = run % runs * ALIKE;
      float guess = 0;
      for (int64_t row = layer * n + from; row < layer * n + std::min(n, from + ALIKE); ++row) {
        const float* d = distances + row * k;
        float typical = 0;
        for (int64_t j = 0; j < k; ++j) typical += sq_dist[j] = (d[j] - d[0]) * (d[j] + d[0]);
        typical /= k;
        if (typical > 0)
          for (int64_t j = 0; j < k; ++j) sq_dist[j] /= typical;
        float low = -20, high = 60, middle = guess, mass = 1;
        // 32 halvings of log2(precision) leave 2e-8, below float32's own rounding; Newton's steps need far fewer, and
        // are taken where they stay between the bounds
        for (int step = 0; step < 32; ++step) {
          const float precision = std::exp2(middle);
          vec sum = {}, moment = {}, second = {};
          for (int64_t j = 0; j < padded; j += WIDTH) {
            const vec s = load(sq_dist.data() + j), w = load(inside.data() + j) * exp_of_negative(s * -precision);
            store(weight.data() + j, w);
            sum += w;
            moment += w * s;
            second += w * s * s;
          }
          mass = total(sum);
          const float mean = total(moment) / mass, excess = std::log(mass) + precision * mean - target;
          if (std::fabs(excess) < 1e-6f) break;
          if (excess > 0) low = middle; else high = middle;
          // the entropy falls by precision^2 var(sq_dist) as log(precision) grows by 1
          const float slope = precision * precision * (total(second) / mass - mean * mean);
          const float newton = middle + excess / slope * 1.44269504f;
          middle = newton > low && newton < high ? newton : (low + high) / 2;
        }
        guess = middle;
        for (int64_t j = 0; j < k; ++j) weights[row * k + j] = weight[j] / mass;
      }
    }
  }
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
  const float share = static_cast<float>(0.5 / n);
  static thread_local std::vector<float> matrices;  // kept, so that its pages are not asked for again and again
  matrices.assign(layers * n * n, 0.0f);
  float* const all_layers = matrices.data();
  starts[0] = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    float* matrix = all_layers + layer * n * n;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t e = (layer * n + i) * k; e < (layer * n + i + 1) * k; ++e) {
        matrix[i * n + indices[e]] += weights[e] * share;
        matrix[indices[e] * n + i] += weights[e] * share;
      }
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
