// Votes of nearest neighbours under many labelings at once, over all layers and groups, and who may vote.
#include <cstdint>
#include <vector>

// indices (L, G, q, k) into each group's bank, labels (S, G, q) and (S, G, m) -> shares and winners (S, L, G): the
// share of neighbours with the query's label, and of queries whose label has most votes, ties to the nearest; winners
// may be nullptr
extern "C" void neighbor_votes(const int64_t* indices, const int64_t* query_labels, const int64_t* bank_labels,
                               int64_t L, int64_t G, int64_t q, int64_t k, int64_t S, int64_t m, double* shares,
                               double* winners, int32_t threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<int64_t> found(k);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < L * G; ++item) {
      const int64_t l = item / G, g = item % G;
      const int64_t* near = indices + item * q * k;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t* own = query_labels + (s * G + g) * q;
        const int64_t* bank = bank_labels + (s * G + g) * m;
        int64_t hits = 0, won = 0;
        for (int64_t i = 0; i < q; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            found[j] = bank[near[i * k + j]];
            hits += found[j] == own[i];
          }
          if (!winners) continue;
          int64_t most = 0, winner = -1;
          for (int64_t j = 0; j < k; ++j) {
            int64_t votes = 0;
            for (int64_t other = 0; other < k; ++other) votes += found[other] == found[j];
            if (votes > most) {
              most = votes;
              winner = found[j];
            }
          }
          won += winner == own[i];
        }
        shares[(s * L + l) * G + g] = static_cast<double>(hits) / (q * k);
        if (winners) winners[(s * L + l) * G + g] = static_cast<double>(won) / q;
      }
    }
  }
}

// The first k of each row's neighbours whose identity is not the query's: indices (L, n, K), ids (n) and (m) -> chosen
// (L, n, k). Returns how many rows have fewer
extern "C" int64_t first_others(const int64_t* indices, const int64_t* query_ids, const int64_t* bank_ids, int64_t L,
                                int64_t n, int64_t K, int64_t k, int64_t* chosen, int32_t threads) {
  int64_t lacking = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : lacking)
  for (int64_t row = 0; row < L * n; ++row) {
    const int64_t own = query_ids[row % n];
    int64_t count = 0;
    for (int64_t j = 0; j < K && count < k; ++j) {
      const int64_t other = indices[row * K + j];
      if (bank_ids[other] != own) chosen[row * k + count++] = other;
    }
    lacking += count < k;
  }
  return lacking;
}
