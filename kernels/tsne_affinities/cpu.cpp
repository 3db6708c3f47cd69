// t-SNE's affinities: weights of a given perplexity, and their symmetrised edges, over all layers.
//
// Source: van der Maaten and Hinton 2008, section 2
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

// The Gaussian weights of each row of sorted distances whose perplexity is the one asked for, by bisection.
// distances, weights (rows, k)
extern "C" void tsne_weights(const float* distances, int64_t rows, int64_t k, float perplexity, float* weights,
                             int32_t threads) {
  const int64_t padded = (k + WIDTH - 1) / WIDTH * WIDTH;
  const float target = std::log(perplexity);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sq_dist(padded), inside(padded, 0.0f), weight(padded);
    std::fill(inside.begin(), inside.begin() + k, 1.0f);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const float* d = distances + row * k;
      float typical = 0;
      for (int64_t j = 0; j < k; ++j) typical += sq_dist[j] = (d[j] - d[0]) * (d[j] + d[0]);
      typical /= k;
      if (typical > 0)
        for (int64_t j = 0; j < k; ++j) sq_dist[j] /= typical;
      float low = -20, high = 60, middle = 0, mass = 1;
      // 32 halvings of log2(precision) leave 2e-8, below float32's own rounding; Newton's steps need far fewer, and are
      // taken where they stay between the bounds
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
      for (int64_t j = 0; j < k; ++j) weights[row * k + j] = weight[j] / mass;
    }
  }
}

// Symmetrised edges: row i holds j where i chose j or j chose i. With columns == nullptr only lengths (layers, n) are
// found; else starts (layers * n) say where a row's edges go. indices, weights (layers, n, k)
extern "C" void tsne_edges(const int64_t* indices, const float* weights, int64_t layers, int64_t n, int64_t k,
                           int64_t* lengths, const int64_t* starts, int32_t* columns, float* values, int32_t threads) {
  const float share = static_cast<float>(0.5 / n);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t* near = indices + layer * n * k;
    const float* weight = weights + layer * n * k;
    // who chose each point, in ascending order
    std::vector<int64_t> first(n + 1, 0), edge(n * k);
    for (int64_t e = 0; e < n * k; ++e) ++first[near[e] + 1];
    for (int64_t i = 0; i < n; ++i) first[i + 1] += first[i];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t e = 0; e < n * k; ++e) edge[next[near[e]]++] = e;
    // place[j] is one more than where j stands in the row at hand, if stamp[j] is that row
    std::vector<int64_t> place(n), stamp(n, -1);
    for (int64_t i = 0; i < n; ++i) {
      int64_t length = 0;
      int32_t* column = columns ? columns + starts[layer * n + i] : nullptr;
      float* value = columns ? values + starts[layer * n + i] : nullptr;
      for (int64_t e = i * k; e < (i + 1) * k; ++e) {
        stamp[near[e]] = i;
        place[near[e]] = length;
        if (columns) {
          column[length] = static_cast<int32_t>(near[e]);
          value[length] = weight[e] * share;
        }
        ++length;
      }
      for (int64_t at = first[i]; at < first[i + 1]; ++at) {
        const int64_t e = edge[at], j = e / k;
        if (stamp[j] == i) {
          if (columns) value[place[j]] += weight[e] * share;
        } else {
          if (columns) {
            column[length] = static_cast<int32_t>(j);
            value[length] = weight[e] * share;
          }
          ++length;
        }
      }
      if (!columns) lengths[layer * n + i] = length;
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
      int64_t length = 0;
      for (int64_t j = 0; j < n; ++j) length += matrix[i * n + j] != 0;
      starts[layer * n + i + 1] = length;
    }
  }
  for (int64_t row = 0; row < layers * n; ++row) starts[row + 1] += starts[row];
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < layers * n; ++row) {
    // a place of the block is written until a value stays there: no branch to mispredict
    int32_t column[64];
    float value[64];
    int64_t at = starts[row], held = 0;
    for (int64_t j = 0; j < n; ++j) {
      column[held] = static_cast<int32_t>(j);
      value[held] = all_layers[row * n + j];
      held += value[held] != 0;
      if (held == 63 || j == n - 1) {
        std::copy_n(column, held, columns + at);
        std::copy_n(value, held, values + at);
        at += held;
        held = 0;
      }
    }
  }
  return starts[layers * n];
}
