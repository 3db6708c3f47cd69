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

// The totals of eight vectors, a lane each.
vec totals(const vec (&a)[ROWS], const vec (&b)[ROWS]) {
  const ivec even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
  const ivec firsts = {0, 1, 8, 9, 4, 5, 12, 13}, seconds = {2, 3, 10, 11, 6, 7, 14, 15};
  const ivec low = {0, 1, 2, 3, 8, 9, 10, 11}, high = {4, 5, 6, 7, 12, 13, 14, 15};
  const auto both = [](vec one, vec other, ivec here, ivec there) {
    return shuffle(one, other, here) + shuffle(one, other, there);
  };
  const vec first = both(both(a[0], a[1], even, odd), both(a[2], a[3], even, odd), firsts, seconds);
  const vec second = both(both(b[0], b[1], even, odd), both(b[2], b[3], even, odd), firsts, seconds);
  return both(first, second, low, high);
}

// Add the repulsion of every pair (i, j), i in the blocks first, first + stride, ..., j at or after its block, to both;
// return the sum of the kernel over the ordered pairs of different points. x and y are padded to whole
// vectors with points so far off that their kernel is 0. forces: lines of `padded` floats, of the repulsion along x and y
// and, with the affinities (padded, padded) of all pairs, the attraction along both.
template <bool ATTRACT>
double add_forces(const float* x, const float* y, const float* affinities, float* forces, int64_t n, int64_t padded,
                  int64_t first, int64_t stride) {
  constexpr int64_t LINES = ATTRACT ? 4 : 2;
  const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  double sum = 0;
  for (int64_t i = first * WIDTH; i < n; i += i % WIDTH + ROWS < WIDTH ? ROWS : stride * WIDTH - WIDTH + ROWS) {
    const int64_t block = i / WIDTH * WIDTH;
    const vec xb = load(x + block), yb = load(y + block);
    vec xi[ROWS], yi[ROWS], own[LINES][ROWS], kernels = {};
    const float* from[ROWS];
    // within the block every ordered pair is visited; half of each, for the sum is doubled below
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; ++r) {
      xi[r] = all(x[i + r]);
      yi[r] = all(y[i + r]);
      const vec dx = xi[r] - xb, dy = yi[r] - yb;
      vec w = inverse(all(1.0f) + dx * dx + dy * dy);
      // points beyond the last one are as far from others, but not from each other
      const ivec itself = lanes == ivec{} + static_cast<int32_t>(i + r - block);
      w = itself ? vec{} : w;
      if (i + r >= n) w = vec{};
      kernels += w;
      own[0][r] = w * w * dx;
      own[1][r] = w * w * dy;
      if constexpr (ATTRACT) {
        from[r] = affinities + (i + r) * padded;
        const vec pull = w * load(from[r] + block);
        own[2][r] = pull * dx;
        own[3][r] = pull * dy;
      }
    }
    kernels *= 0.5f;
    for (int64_t j = block + WIDTH; j < n; j += WIDTH) {
      const vec xj = load(x + j), yj = load(y + j);
      vec others[LINES], passed[ROWS];
#pragma GCC unroll 4
      for (int64_t line = 0; line < LINES; ++line) others[line] = load(forces + line * padded + j);
#pragma GCC unroll 4
      for (int64_t r = 0; r < ROWS; ++r) {
        const vec dx = xi[r] - xj, dy = yi[r] - yj;
        const vec w = inverse(all(1.0f) + dx * dx + dy * dy);
        passed[r] = w;
        const vec w_sq = w * w;
        own[0][r] += w_sq * dx;
        own[1][r] += w_sq * dy;
        others[0] -= w_sq * dx;
        others[1] -= w_sq * dy;
        if constexpr (ATTRACT) {
          const vec pull = w * load(from[r] + j);
          own[2][r] += pull * dx;
          own[3][r] += pull * dy;
          others[2] -= pull * dx;
          others[3] -= pull * dy;
        }
      }
      kernels += (passed[0] + passed[1]) + (passed[2] + passed[3]);
#pragma GCC unroll 4
      for (int64_t line = 0; line < LINES; ++line) store(forces + line * padded + j, others[line]);
    }
    sum += total(kernels);
    for (int64_t line = 0; line < LINES; line += 2) {
      const vec of_rows = totals(own[line], own[line + 1]);
      for (int64_t r = 0; r < ROWS; ++r) {
        forces[line * padded + i + r] += of_rows[r];
        forces[(line + 1) * padded + i + r] += of_rows[ROWS + r];
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

vec gained(float* gain, vec update, vec gradient, float momentum, float step) {
  const vec before = load(gain), now = update * gradient <= vec{} ? before + all(0.2f) : before * all(0.8f) + all(0.01f);
  store(gain, now);
  return update * all(momentum) - all(step) * now * gradient;
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

// The affinities of all pairs of each layer's points, 0 where there is no edge: dense (layers, padded, padded)
extern "C" void tsne_dense(const int64_t* starts, const int32_t* columns, const float* values, int64_t layers, int64_t n,
                           int64_t padded, float* dense, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t line = 0; line < layers * padded; ++line) {
    const int64_t i = line % padded, row = line / padded * n + i;
    float* own = dense + line * padded;
    std::fill_n(own, padded, 0.0f);
    if (i >= n) continue;
    for (int64_t e = starts[row]; e < starts[row + 1]; ++e) own[columns[e]] += values[e];
  }
}

// Repulsion before it is divided by the normaliser, and the kernel's sum over pairs of different points; with the
// affinities of all pairs, dense (layers, padded, padded), the attraction too.
// points (layers, 2, padded); scratch (layers, chunks, lines, padded), 4 lines with the attraction and 2 without;
// sums (layers, chunks)
extern "C" void tsne_repulsion(const float* points, int64_t layers, int64_t n, int64_t padded, const float* dense,
                               int64_t chunks, float* scratch, double* sums, const uint8_t* active, int32_t threads) {
  const int64_t room = (dense ? 4 : 2) * padded;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < layers * chunks; ++task) {
    const int64_t layer = task / chunks, chunk = task % chunks;
    if (!active[layer]) continue;
    const float *x = points + layer * 2 * padded, *y = x + padded;
    float* f = scratch + task * room;
    std::fill_n(f, room, 0.0f);
    sums[task] = dense ? add_forces<true>(x, y, dense + layer * padded * padded, f, n, padded, chunk, chunks)
                       : add_forces<false>(x, y, nullptr, f, n, padded, chunk, chunks);
  }
}

// One step of the descent once scratch and sums hold the repulsion, and with 4 lines the attraction, which is else summed
// along the edges; gradient_sq (layers, n): a point's.
extern "C" void tsne_step(float* points, float* update, float* gains, int64_t layers, int64_t n, int64_t padded,
                          int64_t chunks, int64_t lines, const float* scratch, const double* sums, const int64_t* starts,
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
      const vec share = all(static_cast<float>(1.0 / z));
      for (int64_t i = first; i < last; i += WIDTH) {
        const int64_t some = std::min(WIDTH, last - i), row = layer * n + i;
        vec force[4] = {};
        for (int64_t c = 0; c < chunks; ++c)
          for (int64_t line = 0; line < lines; ++line)
            force[line] += load(scratch + ((layer * chunks + c) * lines + line) * padded + i);
        for (int64_t p = 0; lines < 4 && p < some; ++p) {
          float ax, ay;
          attract(x, y, i + p, columns + starts[row + p], values + starts[row + p], starts[row + p + 1] - starts[row + p],
                  &ax, &ay);
          force[2][p] = ax;
          force[3][p] = ay;
        }
        const vec gx = all(exaggeration) * force[2] - share * force[0];
        const vec gy = all(exaggeration) * force[3] - share * force[1];
        // the points stand still until every row has read them
        const vec vx = gained(kx + i, load(ux + i), gx, momentum, step);
        const vec vy = gained(ky + i, load(uy + i), gy, momentum, step);
        const vec norm = square_root(vx * vx + vy * vy), most = all(max_step_norm);
        const vec shrink = norm > most ? most / norm : all(1.0f);
        store(ux + i, vx * shrink);
        store(uy + i, vy * shrink);
        for (int64_t p = 0; p < some; ++p)
          gradient_sq[row + p] = static_cast<double>(gx[p]) * gx[p] + static_cast<double>(gy[p]) * gy[p];
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

// Some steps with forces over all pairs: tsne_repulsion and tsne_step in turns.
extern "C" void tsne_steps(int64_t iterations, float* points, float* update, float* gains, int64_t layers, int64_t n,
                           int64_t padded, int64_t chunks, int64_t lines, float* scratch, double* sums,
                           const int64_t* starts, const int32_t* columns, const float* values, float exaggeration,
                           float momentum, float step, float max_step_norm, double* gradient_sq, const uint8_t* active,
                           int32_t threads, const float* dense) {
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    tsne_repulsion(points, layers, n, padded, dense, chunks, scratch, sums, active, threads);
    tsne_step(points, update, gains, layers, n, padded, chunks, lines, scratch, sums, starts, columns, values,
              exaggeration, momentum, step, max_step_norm, gradient_sq, active, threads);
  }
}

// KL divergence of each layer from the affinities of all its pairs, dense (layers, padded, padded), each pair visited once:
// sum of p log(p (1 + |yi - yj|^2)), and the logarithm of the normaliser.
extern "C" void tsne_divergence(const float* points, int64_t layers, int64_t n, int64_t padded, const float* dense,
                                double* divergence, int32_t threads) {
  const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    const float *x = points + layer * 2 * padded, *y = x + padded;
    double entropy = 0, normaliser = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float* own = dense + (layer * padded + i) * padded;
      const vec xi = all(x[i]), yi = all(y[i]);
      vec terms = {}, kernels = {};
      for (int64_t j = i / WIDTH * WIDTH; j < n; j += WIDTH) {
        const vec dx = xi - load(x + j), dy = yi - load(y + j), apart = all(1.0f) + dx * dx + dy * dy;
        // points up to the own one are left out, and where p is 0 so is its term
        const ivec behind = lanes > ivec{} + static_cast<int32_t>(std::min(i - j, WIDTH));
        const vec p = behind ? load(own + j) : vec{}, shared = p * apart;
        terms += p * log_of_positive(shared > all(1e-37f) ? shared : all(1e-37f));
        kernels += behind ? inverse(apart) : vec{};
      }
      entropy += total(terms);
      normaliser += total(kernels);
    }
    divergence[layer] = 2 * entropy + std::log(2 * normaliser);
  }
}

// The same from edges, for many points, less the logarithm of the normaliser: each row's sum.
extern "C" void tsne_cross_entropy(const float* points, int64_t layers, int64_t n, int64_t padded, const int64_t* starts,
                                   const int32_t* columns, const float* values, double* rows, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < layers * n; ++row) {
    const float *x = points + row / n * 2 * padded, *y = x + padded;
    const vec xi = all(x[row % n]), yi = all(y[row % n]);
    vec terms = {};
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
      terms += p * log_of_positive(apart > all(1e-37f) ? apart : all(1e-37f));
    }
    rows[row] = total(terms);
  }
}
