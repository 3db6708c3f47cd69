// Votes of nearest neighbours under many labelings at once, over all layers and groups, and who may vote.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef int64_t longs __attribute__((vector_size(32)));
constexpr int64_t LANES = 4, VECTORS = 5, TOGETHER = LANES * VECTORS;  // labelings that are counted together

// Labels (S, G, n) of one group and up to TOGETHER labelings from s on, point by point: (n, TOGETHER). Where there is no
// labeling, `none` stands.
void side_by_side(const int64_t* labels, int64_t S, int64_t G, int64_t n, int64_t g, int64_t s, int64_t none,
                  std::vector<int64_t>& out) {
  out.assign(n * TOGETHER, none);
  for (int64_t lane = 0; lane < std::min(TOGETHER, S - s); ++lane) {
    const int64_t* from = labels + ((s + lane) * G + g) * n;
    for (int64_t i = 0; i < n; ++i) out[i * TOGETHER + lane] = from[i];
  }
}

longs load(const int64_t* p) {
  longs v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// How many of the neighbours have the query's label, under each labeling: near (q, k), own (q, TOGETHER), bank (m, TOGETHER)
void count_alike(const int64_t* near, int64_t q, int64_t k, const int64_t* own, const int64_t* bank, int64_t* hits) {
  longs sums[VECTORS] = {};
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < k; ++j) {
      const int64_t* other = bank + near[i * k + j] * TOGETHER;
#pragma GCC unroll 5
      for (int64_t v = 0; v < VECTORS; ++v) sums[v] -= load(own + i * TOGETHER + v * LANES) == load(other + v * LANES);
    }
  std::memcpy(hits, sums, sizeof sums);
}

// The share of queries whose own label has most votes of their neighbours, ties to the nearest.
double share_won(const int64_t* near, int64_t q, int64_t k, const int64_t* own, const int64_t* bank) {
  std::vector<int64_t> found(k);
  int64_t won = 0;
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < k; ++j) found[j] = bank[near[i * k + j]];
    int64_t most = 0, winner = -1;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t votes = std::count(found.begin(), found.end(), found[j]);
      if (votes > most) {
        most = votes;
        winner = found[j];
      }
    }
    won += winner == own[i];
  }
  return static_cast<double>(won) / q;
}

}  // namespace

// indices (L, G, q, k) into each group's bank, labels (S, G, q) and (S, G, m) -> scores (S, L, G): the share of neighbours
// with the query's label; or with `winners` the share of queries whose label has most votes, ties to the nearest. Returns
// how many indices are not of the bank's m; then there are no scores
extern "C" int64_t neighbor_votes(const int64_t* indices, const int64_t* query_labels, const int64_t* bank_labels,
                                  int64_t L, int64_t G, int64_t q, int64_t k, int64_t S, int64_t m, int32_t winners,
                                  double* scores, int32_t threads) {
  int64_t outside = 0;
  for (int64_t e = 0; e < L * G * q * k; ++e) outside += indices[e] < 0 || indices[e] >= m;
  if (outside) return outside;
#pragma omp parallel num_threads(threads)
  {
    std::vector<int64_t> own, bank;
    for (int64_t s = 0; s < S; s += winners ? 1 : TOGETHER) {
      int64_t laid = -1;
#pragma omp for schedule(static)
      for (int64_t item = 0; item < G * L; ++item) {
        const int64_t g = item / L, l = item % L;
        const int64_t* near = indices + (l * G + g) * q * k;
        if (winners) {
          scores[(s * L + l) * G + g] =
              share_won(near, q, k, query_labels + (s * G + g) * q, bank_labels + (s * G + g) * m);
          continue;
        }
        if (laid != g) {
          // no label of a query is that of a bank where there is no labeling
          side_by_side(query_labels, S, G, q, g, s, 0, own);
          side_by_side(bank_labels, S, G, m, g, s, 1, bank);
          laid = g;
        }
        int64_t hits[TOGETHER];
        count_alike(near, q, k, own.data(), bank.data(), hits);
        for (int64_t lane = 0; lane < std::min(TOGETHER, S - s); ++lane)
          scores[((s + lane) * L + l) * G + g] = static_cast<double>(hits[lane]) / (q * k);
      }
    }
  }
  return 0;
}

// The first k of each row's neighbours whose identity is not the query's: indices (L, n, K), ids (n) and (m) -> chosen
// (L, n, k). Returns how many rows have fewer, or -1 where an index that was looked at is not one of the m
extern "C" int64_t first_others(const int64_t* indices, const int64_t* query_ids, const int64_t* bank_ids, int64_t L,
                                int64_t n, int64_t K, int64_t m, int64_t k, int64_t* chosen, int32_t threads) {
  int64_t lacking = 0, wrong = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : lacking, wrong)
  for (int64_t row = 0; row < L * n; ++row) {
    const int64_t own = query_ids[row % n];
    int64_t count = 0;
    for (int64_t j = 0; j < K && count < k; ++j) {
      const int64_t other = indices[row * K + j];
      if (other < 0 || other >= m) {
        ++wrong;
        break;
      }
      if (bank_ids[other] != own) chosen[row * k + count++] = other;
    }
    lacking += count < k;
  }
  return wrong ? -1 : lacking;
}

// The most bank points that share the identity of one query, of each layer: ids (L, q) and (L, m) -> most (L)
extern "C" void most_shared(const int64_t* query_ids, const int64_t* bank_ids, int64_t L, int64_t q, int64_t m,
                            int64_t* most, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t layer = 0; layer < L; ++layer) {
    std::vector<int64_t> ordered(bank_ids + layer * m, bank_ids + (layer + 1) * m);
    if (!std::is_sorted(ordered.begin(), ordered.end())) std::sort(ordered.begin(), ordered.end());
    most[layer] = 0;
    for (int64_t i = 0; i < q; ++i) {
      const auto same = std::equal_range(ordered.begin(), ordered.end(), query_ids[layer * q + i]);
      most[layer] = std::max<int64_t>(most[layer], same.second - same.first);
    }
  }
}
