// t-SNE's descent over all layers, with forces over all pairs, each visited once, or those that tree.cpp left here.
//
// Source: van der Maaten and Hinton 2008; step rule of openTSNE 1.0.4. Sums have one order whatever the number of
// threads: rows are dealt to a fixed number of chunks, whose forces are added in the order of the chunks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t ROWS = 4;  // points held in registers while all later ones pass by

// Add the repulsion of every pair (i, j), i in the blocks first, first + stride, ..., j at or after its block, to both;
// return the sum of the kernel over the ordered pairs of different points. x and y are padded to whole
// vectors with points so far off that their kernel is 0.
double repel(const float* x, const float* y, float* fx, float* fy, int64_t n, int64_t first, int64_t stride) {
  double sum = 0;
  for (int64_t block = first * WIDTH; block < n; block += stride * WIDTH) {
    for (int64_t i = block; i < std::min(block + WIDTH, n); i += ROWS) {
      vec xi[ROWS], yi[ROWS], ax[ROWS] = {}, ay[ROWS] = {}, kernels = {};
      const int64_t rows = std::min(ROWS, n - i);
      // within the block every ordered pair is visited; half of each, for the sum is doubled below
      for (int64_t r = 0; r < ROWS; ++r) {
        xi[r] = all(x[i + r]);
        yi[r] = all(y[i + r]);
        if (r >= rows) continue;
        const vec dx = xi[r] - load(x + block), dy = yi[r] - load(y + block);
        vec w = inverse(all(1.0f) + dx * dx + dy * dy);
        w[i + r - block] = 0;
        kernels += w * 0.5f;
        ax[r] = w * w * dx;
        ay[r] = w * w * dy;
      }
      for (int64_t j = block + WIDTH; j < n; j += WIDTH) {
        const vec xj = load(x + j), yj = load(y + j);
        vec gx = load(fx + j), gy = load(fy + j);
#pragma GCC unroll 4
        for (int64_t r = 0; r < ROWS; ++r) {
          const vec dx = xi[r] - xj, dy = yi[r] - yj;
          const vec w = inverse(all(1.0f) + dx * dx + dy * dy);
          kernels += w;
          const vec w_sq = w * w;
          ax[r] += w_sq * dx;
          ay[r] += w_sq * dy;
          gx -= w_sq * dx;
          gy -= w_sq * dy;
        }
        store(fx + j, gx);
        store(fy + j, gy);
      }
      sum += total(kernels);
      for (int64_t r = 0; r < rows; ++r) {
        fx[i + r] += total(ax[r]);
        fy[i + r] += total(ay[r]);
      }
    }
  }
  return 2 * sum;
}

// Attraction of one point along its edges.
void attract(const float* x, const float* y, int64_t i, const int32_t* columns, const float* values, int64_t length,
             float* ax, float* ay) {
  const vec xi = all(x[i]), yi = all(y[i]);
  vec sx = {}, sy = {};
  int64_t e = 0;
  for (; e + WIDTH <= length; e += WIDTH) {
    vec xj, yj;
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      xj[lane] = x[columns[e + lane]];
      yj[lane] = y[columns[e + lane]];
    }
    const vec dx = xi - xj, dy = yi - yj;
    const vec w = load(values + e) * inverse(all(1.0f) + dx * dx + dy * dy);
    sx += w * dx;
    sy += w * dy;
  }
  float tx = total(sx), ty = total(sy);
  for (; e < length; ++e) {
    const float dx = x[i] - x[columns[e]], dy = y[i] - y[columns[e]];
    const float w = values[e] / (1.0f + dx * dx + dy * dy);
    tx += w * dx;
    ty += w * dy;
  }
  *ax = tx;
  *ay = ty;
}

float gained(float* gain, float update, float gradient, float momentum, float step) {
  *gain = update * gradient <= 0 ? *gain + 0.2f : *gain * 0.8f + 0.01f;
  return update * momentum - step * *gain * gradient;
}

}  // namespace

// An order of each layer's points in which those that attract each other stand together: breadth first along the edges,
// from the first point that was not reached. starts (layers * n + 1), columns -> order (layers, n)
extern "C" void tsne_order(const int64_t* starts, const int32_t* columns, int64_t layers, int64_t n, int32_t* order,
                           int32_t threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    int32_t* own = order + layer * n;
    std::vector<uint8_t> reached(n, 0);
    int64_t count = 0, next = 0;
    for (int64_t first = 0; first < n; ++first) {
      if (reached[first]) continue;
      reached[first] = 1;
      own[count++] = static_cast<int32_t>(first);
      for (; next < count; ++next) {
        const int64_t row = layer * n + own[next];
        for (int64_t e = starts[row]; e < starts[row + 1]; ++e)
          if (!reached[columns[e]]) {
            reached[columns[e]] = 1;
            own[count++] = columns[e];
          }
      }
    }
  }
}

// The edges of points put into an order (layers, n): their rows in it, their columns renamed; a row's edges stay in theirs.
extern "C" void tsne_put_in_order(const int64_t* starts, const int32_t* columns, const float* values, int64_t layers,
                                  int64_t n, const int32_t* order, int64_t* new_starts, int32_t* new_columns,
                                  float* new_values, int32_t threads) {
  new_starts[0] = 0;
  for (int64_t row = 0; row < layers * n; ++row) {
    const int64_t from = row / n * n + order[row];
    new_starts[row + 1] = new_starts[row] + starts[from + 1] - starts[from];
  }
#pragma omp parallel num_threads(threads)
  {
    std::vector<int32_t> place(n);
    int64_t placed = -1;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < layers * n; ++row) {
      const int64_t layer = row / n, from = starts[layer * n + order[row]], to = new_starts[row];
      if (layer != placed)
        for (int64_t p = 0; p < n; ++p) place[order[layer * n + p]] = static_cast<int32_t>(p);
      placed = layer;
      for (int64_t e = 0; e < new_starts[row + 1] - to; ++e) {
        new_columns[to + e] = place[columns[from + e]];
        new_values[to + e] = values[from + e];
      }
    }
  }
}

// Repulsion before it is divided by the normaliser, and the kernel's sum over pairs of different points.
// points, forces (layers, 2, padded); scratch (layers, chunks, 2, padded); sums (layers, chunks)
extern "C" void tsne_repulsion(const float* points, int64_t layers, int64_t n, int64_t padded, int64_t chunks,
                               float* scratch, double* sums, const uint8_t* active, int32_t threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < layers * chunks; ++task) {
    const int64_t layer = task / chunks, chunk = task % chunks;
    if (!active[layer]) continue;
    const float* x = points + layer * 2 * padded;
    float* f = scratch + task * 2 * padded;
    std::memset(f, 0, sizeof(float) * 2 * padded);
    sums[task] = repel(x, x + padded, f, f + padded, n, chunk, chunks);
  }
}

// One step of the descent once scratch and sums hold the repulsion; gradient_sq (layers): sum of its squares.
extern "C" void tsne_step(float* points, float* update, float* gains, int64_t layers, int64_t n, int64_t padded,
                          int64_t chunks, const float* scratch, const double* sums, const int64_t* starts,
                          const int32_t* columns, const float* values, float exaggeration, float momentum, float step,
                          float max_step_norm, double* gradient_sq, const uint8_t* active, int32_t threads) {
  constexpr int64_t PART = 256;
  const int64_t parts = (n + PART - 1) / PART;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < layers * parts; ++task) {
      const int64_t layer = task / parts, first = task % parts * PART, last = std::min(first + PART, n);
      if (!active[layer]) continue;
      const float *x = points + layer * 2 * padded, *y = x + padded;
      float *ux = update + layer * 2 * padded, *uy = ux + padded, *kx = gains + layer * 2 * padded, *ky = kx + padded;
      double z = 0;
      for (int64_t c = 0; c < chunks; ++c) z += sums[layer * chunks + c];
      const float share = static_cast<float>(1.0 / z);
      for (int64_t i = first; i < last; ++i) {
        float rx = 0, ry = 0, ax, ay;
        for (int64_t c = 0; c < chunks; ++c) {
          const float* f = scratch + (layer * chunks + c) * 2 * padded;
          rx += f[i];
          ry += f[padded + i];
        }
        const int64_t row = layer * n + i;
        attract(x, y, i, columns + starts[row], values + starts[row], starts[row + 1] - starts[row], &ax, &ay);
        const float gx = exaggeration * ax - share * rx, gy = exaggeration * ay - share * ry;
        // the points stand still until every row has read them
        const float vx = gained(kx + i, ux[i], gx, momentum, step), vy = gained(ky + i, uy[i], gy, momentum, step);
        const float norm = std::sqrt(vx * vx + vy * vy), shrink = norm > max_step_norm ? max_step_norm / norm : 1.0f;
        ux[i] = vx * shrink;
        uy[i] = vy * shrink;
        gradient_sq[row] = static_cast<double>(gx) * gx + static_cast<double>(gy) * gy;
      }
    }
#pragma omp for schedule(static)
    for (int64_t line = 0; line < layers * 2; ++line) {
      if (!active[line / 2]) continue;
      float *p = points + line * padded, *u = update + line * padded;
      double mean = 0;
      for (int64_t i = 0; i < n; ++i) mean += p[i] += u[i];
      for (int64_t i = 0; i < n; ++i) p[i] -= static_cast<float>(mean / n);
    }
  }
}

// KL divergence less the logarithm of the normaliser: sum of p log(p (1 + |yi - yj|^2)) over the edges of each row.
extern "C" void tsne_cross_entropy(const float* points, int64_t layers, int64_t n, int64_t padded, const int64_t* starts,
                                   const int32_t* columns, const float* values, double* rows, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < layers * n; ++row) {
    const float *x = points + row / n * 2 * padded, *y = x + padded;
    const vec xi = all(x[row % n]), yi = all(y[row % n]);
    double sum = 0;
    for (int64_t first = starts[row]; first < starts[row + 1]; first += WIDTH) {
      const int64_t lanes = std::min(WIDTH, starts[row + 1] - first);
      // beyond the last edge p is 0, and so is its term
      vec p = {}, xj = xi, yj = yi;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        p[lane] = values[first + lane];
        xj[lane] = x[columns[first + lane]];
        yj[lane] = y[columns[first + lane]];
      }
      const vec dx = xi - xj, dy = yi - yj, apart = p * (all(1.0f) + dx * dx + dy * dy);
      const vec terms = p * log_of_positive(apart > all(1e-37f) ? apart : all(1e-37f));
      for (int64_t lane = 0; lane < WIDTH; ++lane) sum += terms[lane];
    }
    rows[row] = sum;
  }
}
