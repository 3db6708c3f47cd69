// t-SNE's repulsion by a tree, over all layers: far groups of points act by their mass, centre and second moments.
//
// Source: Barnes and Hut 1986; van der Maaten 2014, whose far groups have no second moments. Halves are split at counts
// alone, so that all layers share one tree and differ in which points lie where. Each leaf's forces are summed by one
// thread in one order: results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace {

constexpr float CORE = 0.25f;  // the square of a distance that every group counts as being off
constexpr int64_t LEAF = 4;  // vectors of points in a leaf, at most; all of them are held in registers

struct Node {
  int64_t first, last;  // its points, in the order of the tree
  int64_t skip;         // the next node that is not below this one
  bool leaf() const { return last - first <= LEAF * WIDTH; }
};

// where a node is split: the middle, moved to whole vectors
int64_t middle(int64_t first, int64_t last) {
  return first + ((last - first) / 2 + WIDTH - 1) / WIDTH * WIDTH;
}

void grow(std::vector<Node>& nodes, int64_t first, int64_t last) {
  const size_t own = nodes.size();
  nodes.push_back({first, last, 0});
  if (!nodes[own].leaf()) {
    grow(nodes, first, middle(first, last));
    grow(nodes, middle(first, last), last);
  }
  nodes[own].skip = static_cast<int64_t>(nodes.size());
}

std::vector<Node> grown(int64_t n) {
  std::vector<Node> nodes;
  grow(nodes, 0, n);
  return nodes;
}

// Put points into the order of the tree: halves of a node lie on either side along its longer axis, ties by index.
void arrange(int32_t* order, const float* x, const float* y, int64_t first, int64_t last) {
  if (last - first <= LEAF * WIDTH) return;
  float low_x = x[order[first]], high_x = low_x, low_y = y[order[first]], high_y = low_y;
  for (int64_t i = first; i < last; ++i) {
    low_x = std::min(low_x, x[order[i]]);
    high_x = std::max(high_x, x[order[i]]);
    low_y = std::min(low_y, y[order[i]]);
    high_y = std::max(high_y, y[order[i]]);
  }
  const float* along = high_x - low_x >= high_y - low_y ? x : y;
  const int64_t half = middle(first, last);
  std::nth_element(order + first, order + half, order + last, [&](int32_t a, int32_t b) {
    return along[a] < along[b] || (along[a] == along[b] && a < b);
  });
  arrange(order, x, y, first, half);
  arrange(order, x, y, half, last);
}

// What a group of points is to those far off: mass, centre, sums of products of deviations; and how far it reaches:
// the box it lies in, and no less than the farthest deviation.
struct Group {
  float mass, x, y, xx, xy, yy, low_x, high_x, low_y, high_y, radius;
};

Group group_of(const float* x, const float* y, int64_t n) {
  double sum_x = 0, sum_y = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum_x += x[i];
    sum_y += y[i];
  }
  Group group = {static_cast<float>(n), static_cast<float>(sum_x / n), static_cast<float>(sum_y / n), 0, 0, 0, x[0],
                 x[0], y[0], y[0], 0};
  for (int64_t i = 0; i < n; ++i) {
    const float dx = x[i] - group.x, dy = y[i] - group.y;
    group.xx += dx * dx;
    group.xy += dx * dy;
    group.yy += dy * dy;
    group.low_x = std::min(group.low_x, x[i]);
    group.high_x = std::max(group.high_x, x[i]);
    group.low_y = std::min(group.low_y, y[i]);
    group.high_y = std::max(group.high_y, y[i]);
    group.radius = std::max(group.radius, dx * dx + dy * dy);
  }
  group.radius = std::sqrt(group.radius);
  return group;
}

float apart(const Group& a, const Group& b) { return std::sqrt((a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y)); }

Group joined(const Group& a, const Group& b) {
  const float mass = a.mass + b.mass, share = b.mass / mass, dx = b.x - a.x, dy = b.y - a.y, weight = a.mass * share;
  Group group = {mass, a.x + share * dx, a.y + share * dy, a.xx + b.xx + weight * dx * dx,
                 a.xy + b.xy + weight * dx * dy, a.yy + b.yy + weight * dy * dy, std::min(a.low_x, b.low_x),
                 std::max(a.high_x, b.high_x), std::min(a.low_y, b.low_y), std::max(a.high_y, b.high_y), 0};
  // two bounds, the lesser of which counts
  const float to_x = std::max(group.high_x - group.x, group.x - group.low_x);
  const float to_y = std::max(group.high_y - group.y, group.y - group.low_y);
  group.radius = std::min(std::max(apart(group, a) + a.radius, apart(group, b) + b.radius),
                          std::sqrt(to_x * to_x + to_y * to_y));
  return group;
}

// A layer's points in the order of the tree, padded with their last one, and the group of each node.
struct Layer {
  std::vector<float> x, y;
  std::vector<Group> groups;

  void fill(const std::vector<Node>& nodes, const float* all_x, const float* all_y, const int32_t* order, int64_t n) {
    const int64_t padded = (n + WIDTH - 1) / WIDTH * WIDTH;
    x.resize(padded);
    y.resize(padded);
    for (int64_t i = 0; i < padded; ++i) {
      x[i] = all_x[order[std::min(i, n - 1)]];
      y[i] = all_y[order[std::min(i, n - 1)]];
    }
    groups.resize(nodes.size());
    // children come after their parent
    for (size_t k = nodes.size(); k-- > 0;) {
      const Node& node = nodes[k];
      groups[k] = node.leaf() ? group_of(x.data() + node.first, y.data() + node.first, node.last - node.first)
                              : joined(groups[k + 1], groups[nodes[k + 1].skip]);
    }
  }
};

struct Span {
  int64_t first, last;
};

// What the choice of actors reads of each node: its centre; how far beyond a leaf's radius the leaf's centre must be for
// the node to be far; where to go on from there, and from its first child, which is the same for a leaf.
struct Sight {
  std::vector<float> x, y, need;
  std::vector<int32_t> skip, child;

  // a group is far if its radius is below angle times its distance from the leaf; near the leaf it is far all the same
  // if its radius is far below the kernel's width of 1: r^2 < angle^2 (CORE + gap^2)
  void look(const std::vector<Node>& nodes, const std::vector<Group>& groups, float angle) {
    const size_t count = nodes.size();
    for (auto* part : {&x, &y, &need}) part->resize(count);
    skip.resize(count);
    child.resize(count);
    for (size_t k = 0; k < count; ++k) {
      x[k] = groups[k].x;
      y[k] = groups[k].y;
      const float over = groups[k].radius * groups[k].radius / (angle * angle) - CORE;
      // without a need, all that is not the leaf itself is far
      need[k] = over >= 0 ? std::sqrt(over) : -std::numeric_limits<float>::infinity();
      skip[k] = static_cast<int32_t>(nodes[k].skip);
      child[k] = static_cast<int32_t>(nodes[k].leaf() ? nodes[k].skip : k + 1);
    }
  }
};

// Which groups act on a leaf as a whole, and which points act one by one.
struct Actors {
  std::vector<int32_t> far, near_nodes;
  std::vector<Span> near;

  // the walk takes no branch but its end: which groups are far cannot be foreseen
  void choose(const std::vector<Node>& nodes, const Sight& sight, const std::vector<Group>& groups, int32_t leaf) {
    const int32_t count = static_cast<int32_t>(nodes.size());
    far.resize(count + 1);
    near_nodes.resize(count + 1);
    const float own_x = sight.x[leaf], own_y = sight.y[leaf], own_radius = groups[leaf].radius;
    int32_t n_far = 0, n_near = 0;
    for (int32_t k = 0; k < count;) {
      const float dx = own_x - sight.x[k], dy = own_y - sight.y[k], least = own_radius + sight.need[k];
      const bool is_far = ((least < 0) | (dx * dx + dy * dy > least * least)) & (k != leaf);
      far[n_far] = k;
      near_nodes[n_near] = k;
      n_far += is_far;
      n_near += !is_far & (sight.child[k] == sight.skip[k]);
      k = is_far ? sight.skip[k] : sight.child[k];
    }
    far.resize(n_far);
    near.clear();
    for (int32_t i = 0; i < n_near; ++i) {
      const Node& node = nodes[near_nodes[i]];
      if (!near.empty() && near.back().last == node.first)
        near.back().last = node.last;
      else
        near.push_back({node.first, node.last});
    }
  }
};

// Forces on VECTORS vectors of points from `first` on, and the kernel's sum of each, that with itself included.
template <int VECTORS>
void act(const Layer& layer, const Actors& actors, int64_t first, vec* fx, vec* fy, vec* sums) {
  vec x[VECTORS], y[VECTORS], ax[VECTORS] = {}, ay[VECTORS] = {}, sum[VECTORS] = {};
  for (int v = 0; v < VECTORS; ++v) {
    x[v] = load(layer.x.data() + first + v * WIDTH);
    y[v] = load(layer.y.data() + first + v * WIDTH);
  }
  for (const int32_t node : actors.far) {
    const Group& group = layer.groups[node];
    const vec gx = all(group.x), gy = all(group.y), mass = all(group.mass);
    const vec xx = all(group.xx), xy = all(group.xy), yy = all(group.yy), trace = xx + yy;
    for (int v = 0; v < VECTORS; ++v) {
      const vec dx = x[v] - gx, dy = y[v] - gy, w = inverse(all(1.0f) + dx * dx + dy * dy);
      // Taylor's series of w about the centre up to the second order, and of w w d, which is -1/2 of its gradient
      const vec mx = xx * dx + xy * dy, my = xy * dx + yy * dy, turned = (mx * dx + my * dy) * w;
      const vec w_sq = w * w, w_cube = w_sq * w;
      sum[v] += mass * w + w_sq * (4.0f * turned - trace);
      const vec along = mass * w_sq + w_cube * (12.0f * turned - 2.0f * trace), across = 4.0f * w_cube;
      ax[v] += along * dx - across * mx;
      ay[v] += along * dy - across * my;
    }
  }
  for (const Span& span : actors.near)
    for (int64_t j = span.first; j < span.last; ++j) {
      const vec jx = all(layer.x[j]), jy = all(layer.y[j]);
      for (int v = 0; v < VECTORS; ++v) {
        const vec dx = x[v] - jx, dy = y[v] - jy, w = inverse(all(1.0f) + dx * dx + dy * dy);
        sum[v] += w;
        const vec w_sq = w * w;
        ax[v] += w_sq * dx;
        ay[v] += w_sq * dy;
      }
    }
  for (int v = 0; v < VECTORS; ++v) {
    fx[v] = ax[v];
    fy[v] = ay[v];
    sums[v] = sum[v];
  }
}

}  // namespace

// The order of the tree, of the points of each layer: points (layers, 2, padded) -> order (layers, n)
extern "C" void tsne_tree_order(const float* points, int64_t layers, int64_t n, int64_t padded, int32_t* order,
                                const uint8_t* active, int32_t threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (!active[layer]) continue;
    int32_t* own = order + layer * n;
    std::iota(own, own + n, 0);
    const float* x = points + layer * 2 * padded;
    arrange(own, x, x + padded, 0, n);
  }
}

// Repulsion before it is divided by the normaliser, and the kernel's sum over pairs of different points.
// points, forces (layers, 2, padded); order (layers, n), which may be that of earlier places; sums (layers)
extern "C" void tsne_tree_repulsion(const float* points, int64_t layers, int64_t n, int64_t padded, const int32_t* order,
                                    float angle, float* forces, double* sums, const uint8_t* active, int32_t threads) {
  const std::vector<Node> nodes = grown(n);
  std::vector<size_t> leaves;
  for (size_t k = 0; k < nodes.size(); ++k)
    if (nodes[k].leaf()) leaves.push_back(k);
  const int64_t n_leaves = static_cast<int64_t>(leaves.size());
  std::vector<Layer> filled(layers);
  std::vector<Sight> sights(layers);
  std::vector<double> by_leaf(layers * n_leaves);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t layer = 0; layer < layers; ++layer) {
      const float* x = points + layer * 2 * padded;
      if (!active[layer]) continue;
      filled[layer].fill(nodes, x, x + padded, order + layer * n, n);
      sights[layer].look(nodes, filled[layer].groups, angle);
    }
    Actors actors;
#pragma omp for schedule(dynamic, 8)
    for (int64_t task = 0; task < layers * n_leaves; ++task) {
      const int64_t layer = task / n_leaves;
      if (!active[layer]) continue;
      const size_t leaf = leaves[task % n_leaves];
      const int64_t first = nodes[leaf].first, last = nodes[leaf].last;
      actors.choose(nodes, sights[layer], filled[layer].groups, static_cast<int32_t>(leaf));
      vec fx[LEAF], fy[LEAF], kernels[LEAF];
      switch ((last - first + WIDTH - 1) / WIDTH) {
        case 1: act<1>(filled[layer], actors, first, fx, fy, kernels); break;
        case 2: act<2>(filled[layer], actors, first, fx, fy, kernels); break;
        case 3: act<3>(filled[layer], actors, first, fx, fy, kernels); break;
        default: act<4>(filled[layer], actors, first, fx, fy, kernels);
      }
      float* f = forces + layer * 2 * padded;
      double sum = 0;
      for (int64_t i = first; i < last; ++i) {
        const int64_t v = (i - first) / WIDTH, lane = (i - first) % WIDTH, point = order[layer * n + i];
        f[point] = fx[v][lane];
        f[padded + point] = fy[v][lane];
        sum += kernels[v][lane] - 1;
      }
      by_leaf[task] = sum;
    }
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (!active[layer]) continue;
    sums[layer] = 0;
    for (int64_t leaf = 0; leaf < n_leaves; ++leaf) sums[layer] += by_leaf[layer * n_leaves + leaf];
  }
}
