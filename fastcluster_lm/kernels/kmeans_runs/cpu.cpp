// Whole runs of KMeans on a CPU: greedy k-means++ seeding and Lloyd's iterations, one run a thread at a time.
//
// Source: Lloyd 1982; Arthur and Vassilvitskii 2007 with the trials of scikit-learn; the bounds that spare most distances
// of later iterations are Hamerly's, 2010. Sums of clusters are kept in float64 and changed by the points that move.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "codes.h"
#include "nearest.h"
#include "products.h"
#include "seeding.h"
#include "tile_labels.h"
#include "tiles.h"
#include "vectors.h"

namespace {

struct Problem {
  const float* X;      // (n, width), centred and of size about 1
  const float* x_sq;   // (n)
  int64_t n, width, k;
  const Codes* codes;  // of the points; nullptr where they do not pay
  const Tiles* tiles;  // of the points; nullptr where bounds, which spare distances, pay
};

// coordinates from which bounds, that spare distances, pay; narrower points are compared with all centroids
constexpr int64_t LEAST_BOUNDED = 256;
// codes are given up where they leave more than half of the points in doubt, of so many at least
constexpr int64_t LEAST_JUDGED = 4 * BLOCK;

// Centroids as a bank of codes.
struct CodedCentroids {
  std::vector<uint8_t> codes;
  std::vector<float> scales, squares, errors, moved;
  std::vector<int32_t> sums;
  int64_t stride;
  float largest_error = 0;

  CodedCentroids(int64_t padded, int64_t width)
      : codes(padded * whole_quads(width)), scales(padded), squares(padded), errors(padded),
        moved(whole_quads(width) + WIDTH), sums(padded), stride(whole_quads(width)) {}

  void set(const float* centroids, int64_t k, int64_t width) {
    CodeRoom room{codes.data(), scales.data(), squares.data(), errors.data(), sums.data(), stride};
    for (int64_t c = 0; c < static_cast<int64_t>(scales.size()); ++c) {
      if (c < k)
        room.put_in_bank(c, centroids + c * width, nullptr, moved.data(), width);
      else
        room.pad_bank(c);
    }
    largest_error = *std::max_element(errors.begin(), errors.end());
  }

  Codes view(int64_t k) const {
    return {codes.data(), scales.data(), squares.data(), errors.data(), sums.data(), k, stride};
  }
};

class Run {
 public:
  Run(const Problem& problem, float* centroids, int32_t* labels)
      : p_(problem), centroids_(centroids), labels_(labels), products_(problem.width, problem.k),
        sums_(problem.k * problem.width, 0.0), sizes_(problem.k, 0), upper_(problem.n, INF), lower_(problem.n, 0.0f),
        drift_(problem.k, 0.0f), half_gap_(problem.k, 0.0f),
        coded_(problem.codes ? whole_vectors(problem.k) : 0, problem.codes ? problem.width : 0),
        place_(problem.width), touched_(problem.k, 0), by_codes_(problem.codes) {
    std::fill(labels, labels + problem.n, -1);
    moved_.resize(problem.k);
    std::iota(moved_.begin(), moved_.end(), 0);
    if (problem.tiles) tile_labels_.emplace(*problem.tiles, problem.X, problem.k);
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
    if (tile_labels_) {
      for (const int64_t c : moved_) products_.put(c, centroids_ + c * p_.width);
      return assign_tiles();
    }
    products_.set(centroids_, p_.k);
    if (by_codes_) coded_.set(centroids_, p_.k, p_.width);
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

  // Give each point its nearest centroid, by its distances from those that moved.
  bool assign_tiles() {
    bool changed = false;
    tile_labels_->look(products_, centroids_, moved_, [&](int64_t i, int32_t label) { changed |= relabel(i, label); });
    return changed;
  }

  // Move a point to a cluster; false if it is there.
  bool relabel(int64_t i, int32_t label) {
    const int32_t old = labels_[i];
    if (old == label) return false;
    labels_[i] = label;
    const float* x = p_.X + i * p_.width;
    touched_[label] = 1;
    if (old >= 0) {
      touched_[old] = 1;
      --sizes_[old];
      double* from = sums_.data() + old * p_.width;
      for (int64_t t = 0; t < p_.width; ++t) from[t] -= x[t];
    }
    ++sizes_[label];
    double* to = sums_.data() + label * p_.width;
    for (int64_t t = 0; t < p_.width; ++t) to[t] += x[t];
    return true;
  }

  // Labels and bounds of a block's points as codes tell them; the points that they leave in doubt: their number, places
  int64_t look_at_codes(const int64_t* index, int64_t count, int32_t* labels, int64_t* doubtful) {
    values_.resize(BLOCK * products_.padded);
    values_of_rows(*p_.codes, index, count, coded_.view(p_.k), values_.data());
    int64_t doubts = 0;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t i = index[p];
      const Nearest nearest(values_.data() + p * products_.padded, products_.padded);
      const float error = (p_.codes->errors[i] + coded_.largest_error) * (1 + 1e-5f) + 1e-6f * std::sqrt(largest_sq_);
      upper_[i] = std::sqrt(std::max(nearest.best + p_.codes->squares[i], 0.0f)) + error;
      lower_[i] = std::max(std::sqrt(std::max(nearest.next + p_.codes->squares[i], 0.0f)) - error, 0.0f);
      labels[p] = nearest.label;
      if (!(upper_[i] < lower_[i])) doubtful[doubts++] = p;
    }
    judged_ += count;
    doubted_ += doubts;
    if (judged_ >= LEAST_JUDGED && 2 * doubted_ > judged_) by_codes_ = false;
    return doubts;
  }

  bool assign_block(const int64_t* index, int64_t count) {
    int32_t labels[BLOCK];
    int64_t doubtful[BLOCK], of_doubtful[BLOCK], doubts = count;
    if (by_codes_) {
      doubts = look_at_codes(index, count, labels, doubtful);
    } else {
      for (int64_t p = 0; p < count; ++p) doubtful[p] = p;
    }
    for (int64_t d = 0; d < doubts; ++d) of_doubtful[d] = index[doubtful[d]];
    if (doubts) products_.values_of(p_.X, of_doubtful, doubts);
    for (int64_t d = 0; d < doubts; ++d) {
      const int64_t i = of_doubtful[d];
      const Nearest nearest(products_.block.data() + d * products_.padded, products_.padded);
      upper_[i] = std::sqrt(std::max(nearest.best + p_.x_sq[i], 0.0f));
      lower_[i] = std::sqrt(std::max(nearest.next + p_.x_sq[i], 0.0f));
      labels[doubtful[d]] = nearest.label;
    }
    bool changed = false;
    for (int64_t p = 0; p < count; ++p) changed |= relabel(index[p], labels[p]);
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
    moved_.clear();
    for (int64_t c = 0; c < p_.k; ++c) {
      drift_[c] = 0;
      if (sizes_[c] == 0) {
        empty.push_back(c);
        continue;
      }
      // one whose points are the same is where it was
      if (!touched_[c]) continue;
      const double *sum = sums_.data() + c * p_.width, size = static_cast<double>(sizes_[c]);
      move(c, [&](int64_t t) { return static_cast<float>(sum[t] / size); });
    }
    std::fill(touched_.begin(), touched_.end(), 0);
    const bool moved = !empty.empty() && refill(empty);
    std::sort(moved_.begin(), moved_.end());
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
    for (int64_t t = 0; t < p_.width; ++t) place_[t] = value(t);
    const double sq = squared_distance(centroid, place_.data(), p_.width);
    std::copy(place_.begin(), place_.end(), centroid);
    if (sq > 0) moved_.push_back(c);
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
  std::vector<double> place_;     // where a centroid goes
  std::vector<uint8_t> touched_;  // clusters that have lost or won points since their centroids were set
  std::vector<int64_t> moved_;    // centroids that stand elsewhere than when points were last given theirs
  std::optional<TileLabels> tile_labels_;
  CodedCentroids coded_;
  std::vector<float> values_;
  bool by_codes_;
  int64_t judged_ = 0, doubted_ = 0;
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

float square(const float* x, int64_t width) {
  vec sum = {};
  int64_t t = 0;
  for (; t + WIDTH <= width; t += WIDTH) sum += load(x + t) * load(x + t);
  float rest = 0;
  for (; t < width; ++t) rest += x[t] * x[t];
  return total(sum) + rest;
}

}  // namespace

// X (layers, n, width), x_sq (layers, n): room for their squares; sketch (layers, n, sketch_width) and its squares: the
// points and that room, or fewer coordinates that keep their distances well enough for the odds of seeding; tol: most
// squared shift of a run that ends, as a share of the sum of its layer's squares; draws (k, fresh, trials), init
// (layers, k, width) or nullptr: the first run's centroids; code_room (layers * n) for the points' codes, or without codes
// where none are wanted
// -> labels (layers, runs, n), centroids (layers, runs, k, width), sums, iterations (layers, runs)
extern "C" void kmeans_runs(const float* X, float* x_sq, const float* sketch, const float* sketch_sq,
                            int64_t layers, int64_t n, int64_t width, int64_t sketch_width, int64_t k, int64_t fresh,
                            int64_t trials, const double* draws, const float* init, int64_t max_iter, double tol,
                            int8_t* codes, float* scales, float* squares, float* errors, int32_t* code_sums,
                            int32_t* labels, double* centroids, double* sums, int64_t* iterations, int32_t threads) {
  const int64_t warm = init ? 1 : 0, runs = fresh + warm, stride = whole_quads(width);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < layers * n; ++i) x_sq[i] = square(X + i * width, width);
    if (codes) {
      std::vector<float> moved(stride + WIDTH);
      CodeRoom room{codes, scales, squares, errors, code_sums, stride};
#pragma omp for schedule(static)
      for (int64_t i = 0; i < layers * n; ++i) room.put_query(i, X + i * width, nullptr, moved.data(), width);
    }
    // of the layer that this thread is at, for all its runs
    std::optional<Tiles> tiles;
    int64_t tiled = -1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < layers * runs; ++task) {
      const int64_t layer = task / runs, run = task % runs, at = layer * n;
      Codes of_layer{};
      if (codes) of_layer = {codes + at * stride, scales + at, squares + at, errors + at, code_sums + at, n, stride};
      const bool compared = width < LEAST_BOUNDED, seeded = run >= warm, sketched = sketch != X;
      if ((compared || (seeded && !sketched)) && tiled != layer) {
        tiles.emplace(X + at * width, n, width);
        tiled = layer;
      }
      std::vector<float> own(k * width);
      if (seeded) {
        const float* seen = sketch + at * sketch_width;
        std::optional<Tiles> of_sketch;
        if (sketched) of_sketch.emplace(seen, n, sketch_width);
        std::vector<int64_t> chosen(k);
        Seeding(sketched ? *of_sketch : *tiles, seen, sketch_sq + at, trials)
            .choose(k, draws + (run - warm) * trials, fresh * trials, chosen.data());
        for (int64_t c = 0; c < k; ++c) std::copy_n(X + (at + chosen[c]) * width, width, own.data() + c * width);
      } else {
        std::copy_n(init + layer * k * width, k * width, own.data());
      }
      // the bounds of wide points need none, and a run its memory
      if (!compared) {
        tiles.reset();
        tiled = -1;
      }
      const Problem problem{X + at * width, x_sq + at, n, width, k, codes ? &of_layer : nullptr,
                            compared ? &*tiles : nullptr};
      Run at_work(problem, own.data(), labels + task * n);
      const double total = std::accumulate(x_sq + at, x_sq + at + n, 0.0);
      iterations[task] = at_work.iterate(max_iter, static_cast<float>(tol * total));
      double* last = centroids + task * k * width;
      at_work.finish(last);
      sums[task] = inertia(problem, last, labels + task * n);
    }
  }
}
