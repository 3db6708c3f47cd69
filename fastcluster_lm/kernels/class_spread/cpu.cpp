// Means of classes, how far their points lie from them, and from each other's, in float64.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

// One over the number of points of each class
std::vector<double> shares_of(const int64_t* codes, int64_t n, int64_t classes) {
  std::vector<double> shares(classes, 0.0);
  for (int64_t i = 0; i < n; ++i) shares[codes[i]] += 1;
  for (double& share : shares) share = 1 / share;
  return shares;
}

// Of one layer: X (n, d) -> mean (classes, d), variance (classes)
void spread(const float* X, const int64_t* codes, int64_t n, int64_t d, int64_t classes, const double* shares,
            double* mean, double* variance) {
  for (int64_t at = 0; at < classes * d; ++at) mean[at] = 0;
  for (int64_t c = 0; c < classes; ++c) variance[c] = 0;
  for (int64_t i = 0; i < n; ++i) {
    double* to = mean + codes[i] * d;
    for (int64_t t = 0; t < d; ++t) to[t] += X[i * d + t];
  }
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t t = 0; t < d; ++t) mean[c * d + t] *= shares[c];
  for (int64_t i = 0; i < n; ++i)
    variance[codes[i]] += squared_distance(X + i * d, mean + codes[i] * d, d) * shares[codes[i]];
}

}  // namespace

// X (layers, n, d), codes (n) below classes, none of them empty -> means (layers, classes, d); variances (layers,
// classes): the mean squared distance of a class's points from its mean
extern "C" void class_spread(const float* X, const int64_t* codes, int64_t layers, int64_t n, int64_t d,
                             int64_t classes, double* means, double* variances, int32_t threads) {
  const std::vector<double> shares = shares_of(codes, n, classes);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer)
    spread(X + layer * n * d, codes, n, d, classes, shares.data(), means + layer * classes * d,
           variances + layer * classes);
}

// The same, but out (layers): the mean over pairs of classes of (var_a + var_b) / (2 |mean_a - mean_b|^2). Means whose
// squared distance is no more than `rounding` times the variance of all points coincide.
extern "C" void class_pairs(const float* X, const int64_t* codes, int64_t layers, int64_t n, int64_t d, int64_t classes,
                            double rounding, double* out, int32_t threads) {
  const std::vector<double> shares = shares_of(codes, n, classes);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> mean(classes * d), variance(classes), centre(d);
#pragma omp for schedule(static)
    for (int64_t layer = 0; layer < layers; ++layer) {
      const float* own = X + layer * n * d;
      spread(own, codes, n, d, classes, shares.data(), mean.data(), variance.data());
      std::fill(centre.begin(), centre.end(), 0.0);
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t t = 0; t < d; ++t) centre[t] += mean[c * d + t] / shares[c] / n;
      double size = 0, sum = 0;
      for (int64_t i = 0; i < n; ++i) size += squared_distance(own + i * d, centre.data(), d) / n;
      for (int64_t a = 0; a < classes; ++a)
        for (int64_t b = a + 1; b < classes; ++b) {
          const double apart = squared_distance(mean.data() + a * d, mean.data() + b * d, d);
          sum += (variance[a] + variance[b]) / (2 * (apart > rounding * size ? apart : 0));
        }
      out[layer] = sum / (classes * (classes - 1) / 2);
    }
  }
}
