// One step of AdamW on a CPU over all weights, behind a clip of the whole gradient's norm; weights are changed in place.
//
// Source: Loshchilov and Hutter 2019; the order of operations is that of torch 2.13's fused AdamW. The norm is summed in
// parts that the sizes alone decide: no bit depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t PART = 1 << 14;  // elements that a thread takes at a time

struct Part {
  int64_t tensor, first, last;
};

std::vector<Part> parts_of(const int64_t* sizes, int64_t tensors) {
  std::vector<Part> parts;
  for (int64_t tensor = 0; tensor < tensors; ++tensor)
    for (int64_t first = 0; first < sizes[tensor]; first += PART)
      parts.push_back({tensor, first, std::min(first + PART, sizes[tensor])});
  return parts;
}

double squares(const float* x, int64_t n) {
  vec sum = {};
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) sum += load(x + i) * load(x + i);
  double whole = 0;
  for (int64_t lane = 0; lane < WIDTH; ++lane) whole += sum[lane];
  for (; i < n; ++i) whole += static_cast<double>(x[i]) * x[i];
  return whole;
}

// What is the same for all elements of a tensor.
struct Rule {
  float keep, share;            // of the weight after its decay; of the gradient after the clip
  float new1, beta2, new2;      // shares of a gradient in the moments, from float64: 1 - 0.97f is off by a millionth
  float root, eps, step;        // root of the second moment's bias; learning rate over the first's

  template <class Value>
  void apply(Value& w, const Value g, Value& mean, Value& square, Value (*root_of)(Value)) const {
    const Value gradient = g * share;
    w = w * keep;
    mean = mean + (gradient - mean) * new1;
    square = square * beta2 + gradient * gradient * new2;
    w = w - mean * step / (root_of(square) / root + eps);
  }
};

}  // namespace

// weights, gradients, means, square_means: places of `tensors` arrays of these sizes, groups (tensors): of rates, betas and
// decays; steps: places of the counts of steps, which go up by one. Returns the gradient's norm before the clip; where it is
// not finite, nothing is changed.
extern "C" double adamw_step(float* const* weights, const float* const* gradients, float* const* means,
                             float* const* square_means, float* const* steps, const int64_t* sizes, int64_t tensors,
                             const double* decays, double rate, double beta1, double beta2, double eps, double limit,
                             int32_t threads) {
  const std::vector<Part> parts = parts_of(sizes, tensors);
  const int64_t count = static_cast<int64_t>(parts.size());
  std::vector<double> sums(count);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t p = 0; p < count; ++p)
    sums[p] = squares(gradients[parts[p].tensor] + parts[p].first, parts[p].last - parts[p].first);
  double whole = 0;
  for (const double sum : sums) whole += sum;
  const double norm = std::sqrt(whole);
  if (!std::isfinite(norm)) return norm;
  const float share = static_cast<float>(std::min(1.0, limit / (norm + 1e-6)));
  for (int64_t tensor = 0; tensor < tensors; ++tensor) *steps[tensor] += 1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t p = 0; p < count; ++p) {
    const Part& part = parts[p];
    const double step = *steps[part.tensor];
    const Rule rule{static_cast<float>(1 - rate * decays[part.tensor]),
                    share,
                    static_cast<float>(1 - beta1),
                    static_cast<float>(beta2),
                    static_cast<float>(1 - beta2),
                    static_cast<float>(std::sqrt(1 - std::pow(beta2, step))),
                    static_cast<float>(eps),
                    static_cast<float>(rate / (1 - std::pow(beta1, step)))};
    float *w = weights[part.tensor], *m = means[part.tensor], *v = square_means[part.tensor];
    const float* g = gradients[part.tensor];
    int64_t i = part.first;
    for (; i + WIDTH <= part.last; i += WIDTH) {
      vec weight = load(w + i), mean = load(m + i), square = load(v + i);
      rule.apply<vec>(weight, load(g + i), mean, square, square_root);
      store(w + i, weight);
      store(m + i, mean);
      store(v + i, square);
    }
    for (; i < part.last; ++i) rule.apply<float>(w[i], g[i], m[i], v[i], [](float x) { return std::sqrt(x); });
  }
  return norm;
}
