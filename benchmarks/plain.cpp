// The repulsive sum as anyone would write it: what the kernel's time is held against.
#include <cstdint>

extern "C" void plain_repulsion(const float* points, int64_t layers, int64_t n, float* forces, double* sums,
                                int32_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < layers * n; ++row) {
    const float *x = points + row / n * 2 * n, *y = x + n;
    const float xi = x[row % n], yi = y[row % n];
    float fx = 0, fy = 0, sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float dx = xi - x[j], dy = yi - y[j], w = 1.0f / (1.0f + dx * dx + dy * dy);
      sum += w;
      fx += w * w * dx;
      fy += w * w * dy;
    }
    forces[row / n * 2 * n + row % n] = fx;
    forces[row / n * 2 * n + n + row % n] = fy;
    sums[row] = sum - 1;
  }
}
