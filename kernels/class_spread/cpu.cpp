// Means of classes and how far their points lie from them, in float64.
#include <cstdint>
#include <vector>

#include "vectors.h"

// X (layers, n, d), codes (n) below classes, none of them empty -> means (layers, classes, d); variances (layers,
// classes): the mean squared distance of a class's points from its mean
extern "C" void class_spread(const float* X, const int64_t* codes, int64_t layers, int64_t n, int64_t d,
                             int64_t classes, double* means, double* variances, int32_t threads) {
  std::vector<double> shares(classes, 0.0);
  for (int64_t i = 0; i < n; ++i) shares[codes[i]] += 1;
  for (int64_t c = 0; c < classes; ++c) shares[c] = 1 / shares[c];
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    double *mean = means + layer * classes * d, *variance = variances + layer * classes;
    for (int64_t at = 0; at < classes * d; ++at) mean[at] = 0;
    for (int64_t c = 0; c < classes; ++c) variance[c] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float* x = X + (layer * n + i) * d;
      double* to = mean + codes[i] * d;
      for (int64_t t = 0; t < d; ++t) to[t] += x[t];
    }
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t t = 0; t < d; ++t) mean[c * d + t] *= shares[c];
    for (int64_t i = 0; i < n; ++i)
      variance[codes[i]] += squared_distance(X + (layer * n + i) * d, mean + codes[i] * d, d) * shares[codes[i]];
  }
}
