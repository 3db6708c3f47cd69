// Votes of nearest neighbours under many labelings at once, over all layers and groups.
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
