// Whole runs of KMeans on a CPU: greedy k-means++ seeding and Lloyd's iterations, one run a thread at a time.
//
// Source: Lloyd 1982; Arthur and Vassilvitskii 2007 with the trials of scikit-learn; the bounds that spare most distances
// of later iterations are Hamerly's, 2010. Sums of clusters are kept in float64 and changed by the points that move.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

typedef float quad __attribute__((vector_size(16)));

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int64_t ROWS = 8, BLOCK = 64, DEPTH = 512;

int64_t whole_vectors(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

// out[p][c] += rows[p] . columns[.][c] for some points and vectors of centroids, over depth coordinates
template <int64_t POINTS, int64_t LANES>
void multiply(const float* const* rows, const float* columns, int64_t stride, int64_t depth, float* out, int64_t width) {
  vec sum[POINTS][LANES];
#pragma GCC unroll 8
  for (int64_t p = 0; p < POINTS; ++p)
#pragma GCC unroll 2
    for (int64_t l = 0; l < LANES; ++l) sum[p][l] = load(out + p * width + l * WIDTH);
  for (int64_t t = 0; t < depth; ++t) {
    vec c[LANES];
#pragma GCC unroll 2
    for (int64_t l = 0; l < LANES; ++l) c[l] = load(columns + t * stride + l * WIDTH);
#pragma GCC unroll 8
    for (int64_t p = 0; p < POINTS; ++p) {
      const vec x = all(rows[p][t]);
#pragma GCC unroll 2
      for (int64_t l = 0; l < LANES; ++l) sum[p][l] += x * c[l];
    }
  }
#pragma GCC unroll 8
  for (int64_t p = 0; p < POINTS; ++p)
#pragma GCC unroll 2
    for (int64_t l = 0; l < LANES; ++l) store(out + p * width + l * WIDTH, sum[p][l]);
}

// Products of chosen points with all centroids, in blocks that stay in the cache.
struct Products {
  int64_t width, padded;       // coordinates; centroids in whole vectors
  std::vector<float> columns;  // (width, padded)
  std::vector<float> sq_norm;  // (padded), infinite beyond the last centroid
  std::vector<float> block;    // (BLOCK, padded)

  Products(int64_t width, int64_t k)
      : width(width), padded(whole_vectors(k)), columns(width * padded), sq_norm(padded), block(BLOCK * padded) {}

  void set(const float* centroids, int64_t k) {
    std::fill(sq_norm.begin(), sq_norm.end(), INF);
    for (int64_t c = 0; c < k; ++c) {
      float sum = 0;
      for (int64_t t = 0; t < width; ++t) {
        const float value = centroids[c * width + t];
        columns[t * padded + c] = value;
        sum += value * value;
      }
      sq_norm[c] = sum;
    }
  }

  void put(int64_t c, const float* point, float point_sq) {
    for (int64_t t = 0; t < width; ++t) columns[t * padded + c] = point[t];
    sq_norm[c] = point_sq;
  }

  // block[p][c] = x . c for the count points of X named by index
  void multiply_all(const float* X, const int64_t* index, int64_t count) {
    std::fill(block.begin(), block.begin() + whole_rows(count) * padded, 0.0f);
    for (int64_t from = 0; from < width; from += DEPTH) {
      const int64_t depth = std::min(DEPTH, width - from);
      for (int64_t c = 0; c < padded;) {
        const int64_t lanes = padded - c >= 2 * WIDTH ? 2 : 1;
        for (int64_t p = 0; p < count; p += ROWS) {
          const float* rows[ROWS];
          for (int64_t r = 0; r < ROWS; ++r) rows[r] = X + index[std::min(p + r, count - 1)] * width + from;
          float* out = block.data() + p * padded + c;
          const float* at = columns.data() + from * padded + c;
          if (lanes == 2) {
            multiply<4, 2>(rows, at, padded, depth, out, padded);
            multiply<4, 2>(rows + 4, at, padded, depth, out + 4 * padded, padded);
          } else {
            multiply<8, 1>(rows, at, padded, depth, out, padded);
          }
        }
        c += lanes * WIDTH;
      }
    }
  }

  static int64_t whole_rows(int64_t count) { return (count + ROWS - 1) / ROWS * ROWS; }
};

struct Problem {
  const float* X;        // (n, width), centred and of size about 1
  const float* x_sq;     // (n)
  const int64_t* order;  // 0 .. n - 1
  int64_t n, width, k;
};

// Choose k of the points to start from: each next one with odds by squared distance, the best of the trials.
void seed(const Problem& problem, const double* draws, int64_t draw_stride, int64_t trials, int64_t* chosen) {
  const int64_t n = problem.n, width = problem.width;
  Products products(width, trials);
  const int64_t lanes = products.padded;
  std::vector<float> closest(n, INF), reached(n * lanes);
  std::vector<double> mass(n), sums(lanes);
  std::vector<int64_t> candidates(trials);
  for (int64_t c = 0; c < problem.k; ++c) {
    const double* draw = draws + c * draw_stride;
    const int64_t tried = c == 0 ? 1 : trials;
    if (c == 0) {
      candidates[0] = static_cast<int64_t>(draw[0] * n);
    } else {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) mass[i] = sum += closest[i];
      // the first point whose cumulated distance exceeds the draw: a point at distance 0 is never it
      for (int64_t t = 0; t < trials; ++t)
        candidates[t] = std::min<int64_t>(
            std::upper_bound(mass.begin(), mass.end(), draw[t] * sum) - mass.begin(), n - 1);
    }
    for (int64_t t = 0; t < tried; ++t)
      products.put(t, problem.X + candidates[t] * width, problem.x_sq[candidates[t]]);
    double best = std::numeric_limits<double>::infinity();
    int64_t winner = 0;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t start = 0; start < n; start += BLOCK) {
      const int64_t count = std::min(BLOCK, n - start);
      products.multiply_all(problem.X, problem.order + start, count);
      for (int64_t t = 0; t < tried; t += WIDTH) {
        // a lane for each trial
        const vec candidate_sq = load(products.sq_norm.data() + t);
        doubles sum[2] = {};
        for (int64_t p = 0; p < count; ++p) {
          const int64_t i = start + p;
          vec near = (all(problem.x_sq[i]) + candidate_sq) - all(2.0f) * load(products.block.data() + p * lanes + t);
          near = near < vec{} ? vec{} : near;
          near = near < all(closest[i]) ? near : all(closest[i]);
          store(reached.data() + i * lanes + t, near);
          quad half[2];
          std::memcpy(half, &near, sizeof half);
          sum[0] += __builtin_convertvector(half[0], doubles);
          sum[1] += __builtin_convertvector(half[1], doubles);
        }
        for (int64_t lane = 0; lane < WIDTH; ++lane) sums[t + lane] += sum[lane / 4][lane % 4];
      }
    }
    for (int64_t t = 0; t < tried; ++t)
      if (sums[t] < best) {
        best = sums[t];
        winner = t;
      }
    for (int64_t i = 0; i < n; ++i) closest[i] = reached[i * lanes + winner];
    chosen[c] = candidates[winner];
  }
}

class Run {
 public:
  Run(const Problem& problem, float* centroids, int32_t* labels)
      : p_(problem), centroids_(centroids), labels_(labels), products_(problem.width, problem.k),
        sums_(problem.k * problem.width, 0.0), sizes_(problem.k, 0), upper_(problem.n, INF), lower_(problem.n, 0.0f),
        drift_(problem.k, 0.0f), half_gap_(problem.k, 0.0f) {
    std::fill(labels, labels + problem.n, -1);
    // what rounding makes of a squared distance: the root of a sum of width terms, and some for centring
    rounding_ = std::numeric_limits<float>::epsilon() * (8 + 2 * std::sqrt(static_cast<float>(problem.width)));
    largest_sq_ = *std::max_element(problem.x_sq, problem.x_sq + problem.n);
  }

  // Returns the iterations taken.
  int64_t iterate(int64_t max_iter, float tol) {
    for (int64_t iteration = 1; iteration <= max_iter; ++iteration) {
      const bool changed = assign();
      const bool moved = update();
      if ((!changed && !moved) || shift_ <= tol) return iteration;
    }
    return max_iter;
  }

  // Label the points by the final centroids and give those out: where the labels stayed, as the float64 means of their
  // points, which have lost the rounding to float32.
  void finish(double* centroids) {
    const bool settled = !assign();
    for (int64_t c = 0; c < p_.k; ++c)
      for (int64_t t = 0; t < p_.width; ++t) {
        const int64_t at = c * p_.width + t;
        centroids[at] = settled && sizes_[c] > 0 ? sums_[at] / sizes_[c] : centroids_[at];
      }
  }

 private:
  // Give each point its nearest centroid; those whose bounds leave no doubt are not looked at.
  bool assign() {
    products_.set(centroids_, p_.k);
    gaps();
    float c_most = 0;
    for (int64_t c = 0; c < p_.k; ++c) c_most = std::max(c_most, products_.sq_norm[c]);
    const float slack = 2 * std::sqrt(rounding_ * (largest_sq_ + c_most));
    int64_t index[BLOCK], count = 0;
    bool changed = false;
    for (int64_t i = 0; i < p_.n; ++i) {
      const int32_t own = labels_[i];
      if (own >= 0) {
        upper_[i] += drift_[own];
        lower_[i] -= own == fastest_ ? second_drift_ : most_drift_;
        if (upper_[i] + slack < std::max(lower_[i], half_gap_[own])) continue;
      }
      index[count++] = i;
      if (count == BLOCK) {
        changed |= assign_block(index, count);
        count = 0;
      }
    }
    if (count) changed |= assign_block(index, count);
    std::fill(drift_.begin(), drift_.end(), 0.0f);
    most_drift_ = second_drift_ = 0;
    return changed;
  }

  bool assign_block(const int64_t* index, int64_t count) {
    products_.multiply_all(p_.X, index, count);
    bool changed = false;
    for (int64_t p = 0; p < count; ++p) {
      const float* product = products_.block.data() + p * products_.padded;
      // lane by lane: the least of every eighth centroid, where it stands, and the least of the others
      vec least = all(INF), other = all(INF);
      ivec place = {};
      for (int64_t c = 0; c < products_.padded; c += WIDTH) {
        const vec sq = load(products_.sq_norm.data() + c) - all(2.0f) * load(product + c);
        const ivec less = sq < least;
        const vec larger = less ? least : sq;
        other = larger < other ? larger : other;
        least = less ? sq : least;
        place = less ? ivec{} + static_cast<int32_t>(c) : place;
      }
      float best = INF, next = INF;
      int32_t label = 0;
      for (int64_t lane = 0; lane < WIDTH; ++lane) {
        const int32_t at = place[lane] + static_cast<int32_t>(lane);
        if (least[lane] < best || (least[lane] == best && at < label)) {
          next = std::min(best, std::min(next, other[lane]));
          best = least[lane];
          label = at;
        } else {
          next = std::min(next, std::min(least[lane], other[lane]));
        }
      }
      const int64_t i = index[p];
      upper_[i] = std::sqrt(std::max(best + p_.x_sq[i], 0.0f));
      lower_[i] = std::sqrt(std::max(next + p_.x_sq[i], 0.0f));
      const int32_t old = labels_[i];
      if (old == label) continue;
      changed = true;
      labels_[i] = label;
      const float* x = p_.X + i * p_.width;
      if (old >= 0) {
        --sizes_[old];
        double* from = sums_.data() + old * p_.width;
        for (int64_t t = 0; t < p_.width; ++t) from[t] -= x[t];
      }
      ++sizes_[label];
      double* to = sums_.data() + label * p_.width;
      for (int64_t t = 0; t < p_.width; ++t) to[t] += x[t];
    }
    return changed;
  }

  // Half the distance from each centroid to its nearest neighbour; only worth its cost where there are few.
  void gaps() {
    std::fill(half_gap_.begin(), half_gap_.end(), 0.0f);
    if (p_.k * 8 > p_.n || p_.k < 2) return;
    std::vector<int64_t> order(p_.k);
    for (int64_t c = 0; c < p_.k; ++c) order[c] = c;
    for (int64_t start = 0; start < p_.k; start += BLOCK) {
      const int64_t count = std::min(BLOCK, p_.k - start);
      products_.multiply_all(centroids_, order.data() + start, count);
      for (int64_t p = 0; p < count; ++p) {
        float least = INF;
        for (int64_t c = 0; c < p_.k; ++c)
          if (c != start + p)
            least = std::min(least, products_.sq_norm[c] - 2 * products_.block[p * products_.padded + c]);
        const float sq = least + products_.sq_norm[start + p];
        half_gap_[start + p] = 0.5f * std::sqrt(std::max(sq, 0.0f));
      }
    }
  }

  // Move each centroid to the mean of its points; true if an empty one was put on a far point.
  bool update() {
    shift_ = 0;
    most_drift_ = second_drift_ = 0;
    fastest_ = -1;
    std::vector<int64_t> empty;
    for (int64_t c = 0; c < p_.k; ++c) {
      drift_[c] = 0;
      if (sizes_[c] == 0) {
        empty.push_back(c);
        continue;
      }
      const double* sum = sums_.data() + c * p_.width;
      move(c, [&](int64_t t) { return static_cast<float>(sum[t] / sizes_[c]); });
    }
    const bool moved = !empty.empty() && refill(empty);
    for (int64_t c = 0; c < p_.k; ++c) {
      if (drift_[c] > most_drift_) {
        second_drift_ = most_drift_;
        most_drift_ = drift_[c];
        fastest_ = c;
      } else {
        second_drift_ = std::max(second_drift_, drift_[c]);
      }
    }
    return moved;
  }

  template <class Value>
  void move(int64_t c, Value value) {
    float* centroid = centroids_ + c * p_.width;
    double sq = 0;
    for (int64_t t = 0; t < p_.width; ++t) {
      const float to = value(t);
      sq += static_cast<double>(to - centroid[t]) * (to - centroid[t]);
      centroid[t] = to;
    }
    shift_ += sq;
    drift_[c] = static_cast<float>(std::sqrt(sq) * (1 + 1e-6));
  }

  // Put empty clusters on the points farthest from the centroids they were given by.
  bool refill(const std::vector<int64_t>& empty) {
    float c_most = 0;
    for (int64_t c = 0; c < p_.k; ++c) c_most = std::max(c_most, products_.sq_norm[c]);
    std::vector<std::pair<float, int64_t>> away;
    for (int64_t i = 0; i < p_.n; ++i) {
      // by direct differences from the centroids that labelled them, kept in the products' columns
      const float* x = p_.X + i * p_.width;
      const int64_t own = labels_[i];
      float sq = 0;
      for (int64_t t = 0; t < p_.width; ++t) {
        const float apart = x[t] - products_.columns[t * products_.padded + own];
        sq += apart * apart;
      }
      // what rounding alone can make of a distance of 0 counts as 0: no cluster is put where one is already
      if (sq > 4 * rounding_ * (p_.x_sq[i] + c_most)) away.emplace_back(-sq, i);
    }
    const size_t wanted = std::min(empty.size(), away.size());
    std::partial_sort(away.begin(), away.begin() + wanted, away.end());
    for (size_t e = 0; e < wanted; ++e) {
      const float* x = p_.X + away[e].second * p_.width;
      move(empty[e], [&](int64_t t) { return x[t]; });
    }
    return wanted > 0;
  }

  const Problem& p_;
  float* centroids_;
  int32_t* labels_;
  Products products_;
  std::vector<double> sums_;
  std::vector<int64_t> sizes_;
  std::vector<float> upper_, lower_, drift_, half_gap_;
  float rounding_, largest_sq_, most_drift_ = 0, second_drift_ = 0;
  int64_t fastest_ = -1;
  double shift_ = 0;
};

double inertia(const Problem& problem, const double* centroids, const int32_t* labels) {
  double sum = 0;
  for (int64_t i = 0; i < problem.n; ++i)
    sum += squared_distance(problem.X + i * problem.width, centroids + labels[i] * problem.width, problem.width);
  return sum;
}

}  // namespace

// X (layers, n, width), x_sq (layers, n), sketch (layers, n, sketch_width) and its squares: the points, or fewer
// coordinates that keep their distances well enough for the odds of seeding, order (n): 0 .. n - 1, tol (layers): absolute, on the squared shift
// draws (k, fresh, trials), init (layers, k, width) or nullptr: the first run's centroids
// -> labels (layers, runs, n), centroids (layers, runs, k, width), sums, iterations (layers, runs)
extern "C" void kmeans_runs(const float* X, const float* x_sq, const float* sketch, const float* sketch_sq,
                            const int64_t* order, int64_t layers, int64_t n, int64_t width, int64_t sketch_width, int64_t k, int64_t fresh, int64_t trials, const double* draws,
                            const float* init, int64_t max_iter, const float* tol, int32_t* labels, double* centroids,
                            double* sums, int64_t* iterations, int32_t threads) {
  const int64_t warm = init ? 1 : 0, runs = fresh + warm;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < layers * runs; ++task) {
    const int64_t layer = task / runs, run = task % runs;
    const Problem problem{X + layer * n * width, x_sq + layer * n, order, n, width, k};
    std::vector<float> own(k * width);
    if (run < warm) {
      std::copy_n(init + layer * k * width, k * width, own.data());
    } else {
      const Problem sketched{sketch + layer * n * sketch_width, sketch_sq + layer * n, order, n, sketch_width, k};
      std::vector<int64_t> chosen(k);
      seed(sketched, draws + (run - warm) * trials, fresh * trials, trials, chosen.data());
      for (int64_t c = 0; c < k; ++c) std::copy_n(problem.X + chosen[c] * width, width, own.data() + c * width);
    }
    Run at_work(problem, own.data(), labels + task * n);
    iterations[task] = at_work.iterate(max_iter, tol[layer]);
    double* last = centroids + task * k * width;
    at_work.finish(last);
    sums[task] = inertia(problem, last, labels + task * n);
  }
}
