// A block of GPT-2 on a CPU, forward and backward: attention, then an MLP, each on a normalised input and added to it.
//
// Source: Radford et al. 2019 (pre-norm, tanh-GELU). Some sequences at a time go through the whole block, so that what it
// makes of them stays in the cache. A sequence's results do not depend on those beside it, and gradients of weights are
// summed in parts that the shapes alone decide: no bit depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "products.h"
#include "vectors.h"

namespace {

constexpr int64_t ROWS_TOGETHER = 96;              // tokens that go through the block together
constexpr int64_t PARTS = 8, ROWS_A_PART = 128;  // in which gradients of weights are summed: at most; tokens of one
constexpr float EPS = 1e-5f, ROOT = 0.7978845608f, CUBE = 0.044715f;  // of the norms; of GELU: sqrt(2 / pi)

struct Shape {
  int64_t batch, tokens, queries, width, heads, inner;  // queries: positions a sequence that are computed
  int64_t head_width() const { return width / heads; }
  int64_t padded_tokens() const { return (tokens + WIDTH - 1) / WIDTH * WIDTH; }
  int64_t together() const { return std::max<int64_t>(1, ROWS_TOGETHER / tokens); }
};

// As nn.Linear and nn.LayerNorm keep them, in the order of the module.
enum Weight { LN1, LN1_BIAS, QKV, QKV_BIAS, OUT, OUT_BIAS, LN2, LN2_BIAS, FC, FC_BIAS, PROJ, PROJ_BIAS, WEIGHTS };

struct Sizes {
  int64_t of[WEIGHTS], whole = 0;
  explicit Sizes(const Shape& s)
      : of{s.width, s.width, 3 * s.width * s.width, 3 * s.width, s.width * s.width, s.width, s.width, s.width,
           s.inner * s.width, s.inner, s.width * s.inner, s.width} {
    for (const int64_t size : of) whole += size;
  }
};

// What the forward keeps of sequences for the backward.
struct Kept {
  float *q, *kv, *shares, *mixed, *middle, *active, *slope;

  static int64_t size(const Shape& s, int64_t sequences) {
    return sequences * (s.queries * (3 * s.width + 2 * s.inner) + s.tokens * 2 * s.width + s.heads * s.queries * s.tokens);
  }
  // from a buffer that holds them all, or that of one group of sequences
  Kept(const Shape& s, float* at, int64_t sequences, int64_t first) {
    const auto next = [&](int64_t a_sequence) {
      float* part = at + first * a_sequence;
      at += sequences * a_sequence;
      return part;
    };
    q = next(s.queries * s.width);
    kv = next(s.tokens * 2 * s.width);
    mixed = next(s.queries * s.width);
    middle = next(s.queries * s.width);
    active = next(s.queries * s.inner);
    slope = next(s.queries * s.inner);
    shares = next(s.heads * s.queries * s.tokens);
  }
};

// out = (x - mean) / deviation * weight + bias, row by row; the normalised rows and 1 / deviation too, where asked for
void normalise(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias, float* out,
               float* normed = nullptr, float* inverse = nullptr) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    vec sum = {}, squares = {};
    for (int64_t t = 0; t < width; t += WIDTH) sum += load(row + t);
    const float mean = total(sum) / width;
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec apart = load(row + t) - all(mean);
      squares += apart * apart;
    }
    const float scale = 1.0f / std::sqrt(total(squares) / width + EPS);
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec value = (load(row + t) - all(mean)) * all(scale);
      if (normed) store(normed + r * width + t, value);
      store(out + r * width + t, value * load(weight + t) + load(bias + t));
    }
    if (inverse) inverse[r] = scale;
  }
}

// The gradient of a norm's input is added to dx; those of weight and bias to theirs.
void normalise_backward(const float* dout, const float* normed, const float* inverse, int64_t rows, int64_t width,
                        const float* weight, float* dx, float* dweight, float* dbias) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *d = dout + r * width, *n = normed + r * width;
    vec sum = {}, along = {};
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec scaled = load(d + t) * load(weight + t);
      sum += scaled;
      along += scaled * load(n + t);
    }
    const float mean = total(sum) / width, mean_along = total(along) / width;
    for (int64_t t = 0; t < width; t += WIDTH) {
      const vec scaled = load(d + t) * load(weight + t);
      const vec change = (scaled - all(mean) - load(n + t) * all(mean_along)) * all(inverse[r]);
      store(dx + r * width + t, load(dx + r * width + t) + change);
      store(dweight + t, load(dweight + t) + load(d + t) * load(n + t));
      store(dbias + t, load(dbias + t) + load(d + t));
    }
  }
}

// x = gelu(x) in place; its derivative too, where there is room for it
void gelu(float* x, int64_t n, float* slope) {
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vec v = load(x + i), sq = v * v, inner = all(ROOT) * v * (all(1.0f) + all(CUBE) * sq);
    // tanh by the exponential of a number that is not positive
    const vec size = inner < vec{} ? -inner : inner, e = exp_of_negative(size * all(-2.0f));
    const vec of_size = (all(1.0f) - e) / (all(1.0f) + e), t = inner < vec{} ? -of_size : of_size;
    const vec half = all(0.5f) * (all(1.0f) + t);
    store(x + i, v * half);
    if (slope)
      store(slope + i, half + all(0.5f * ROOT) * v * (all(1.0f) - t * t) * (all(1.0f) + all(3 * CUBE) * sq));
  }
}

// The query's position in its sequence: up to there it sees.
int64_t position_of(const Shape& s, const int64_t* positions, int64_t sequence, int64_t query) {
  return positions ? positions[sequence * s.queries + query] : query;
}

// One head of one sequence, its keys or values with a row a coordinate: mirrored (head_width, padded_tokens)
void mirror_head(const Shape& s, const float* from, float* mirrored) {
  const int64_t padded = s.padded_tokens();
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int64_t d = 0; d < s.head_width(); ++d) mirrored[d * padded + t] = from[t * 2 * s.width + d];
}

// out (padded_tokens) = row . mirrored
void along_tokens(const Shape& s, const float* row, const float* mirrored, float* out) {
  const int64_t padded = s.padded_tokens();
  for (int64_t t = 0; t < padded; t += WIDTH) {
    vec sum = {};
    for (int64_t d = 0; d < s.head_width(); ++d) sum += all(row[d]) * load(mirrored + d * padded + t);
    store(out + t, sum);
  }
}

void attend(const Shape& s, const int64_t* positions, int64_t sequence, const Kept& kept, std::vector<float>& scratch) {
  const int64_t padded = s.padded_tokens(), dh = s.head_width(), w = s.width;
  scratch.assign((dh + 1) * padded, 0.0f);
  float *mirrored = scratch.data(), *row = mirrored + dh * padded;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dh));
  for (int64_t h = 0; h < s.heads; ++h) {
    mirror_head(s, kept.kv + h * dh, mirrored);
    for (int64_t p = 0; p < s.queries; ++p) {
      const int64_t last = position_of(s, positions, sequence, p);
      along_tokens(s, kept.q + p * w + h * dh, mirrored, row);
      float most = row[0];
      for (int64_t t = 1; t <= last; ++t) most = std::max(most, row[t]);
      vec sum = {};
      for (int64_t t = 0; t < padded; t += WIDTH) {
        const vec share = exp_of_negative((load(row + t) - all(most)) * all(scale));
        const ivec seen = ivec{0, 1, 2, 3, 4, 5, 6, 7} + static_cast<int32_t>(t) <= ivec{} + static_cast<int32_t>(last);
        store(row + t, seen ? share : vec{});
        sum += seen ? share : vec{};
      }
      const vec inverse = all(1.0f / total(sum));
      for (int64_t t = 0; t < padded; t += WIDTH) store(row + t, load(row + t) * inverse);
      std::copy(row, row + s.tokens, kept.shares + (h * s.queries + p) * s.tokens);
      for (int64_t d = 0; d < dh; d += WIDTH) {
        vec mixed = {};
        for (int64_t t = 0; t <= last; ++t) mixed += all(row[t]) * load(kept.kv + t * 2 * w + w + h * dh + d);
        store(kept.mixed + p * w + h * dh + d, mixed);
      }
    }
  }
}

// Gradients of queries, and of keys and values, from that of the mixed values: dq (queries, width), dkv (tokens, 2 width)
void attend_backward(const Shape& s, const int64_t* positions, int64_t sequence, const Kept& kept, const float* dmixed,
                     float* dq, float* dkv, std::vector<float>& scratch) {
  const int64_t padded = s.padded_tokens(), dh = s.head_width(), w = s.width;
  scratch.assign((dh + 1) * padded, 0.0f);
  float *mirrored = scratch.data(), *row = mirrored + dh * padded;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dh));
  for (int64_t h = 0; h < s.heads; ++h) {
    mirror_head(s, kept.kv + w + h * dh, mirrored);
    for (int64_t p = 0; p < s.queries; ++p) {
      const int64_t last = position_of(s, positions, sequence, p);
      const float *share = kept.shares + (h * s.queries + p) * s.tokens, *d_out = dmixed + p * w + h * dh;
      along_tokens(s, d_out, mirrored, row);
      float weighted = 0;
      for (int64_t t = 0; t <= last; ++t) weighted += share[t] * row[t];
      for (int64_t t = 0; t <= last; ++t) row[t] = share[t] * (row[t] - weighted) * scale;
      for (int64_t d = 0; d < dh; d += WIDTH) {
        const vec q = load(kept.q + p * w + h * dh + d), out = load(d_out + d);
        vec sum = {};
        for (int64_t t = 0; t <= last; ++t) {
          sum += all(row[t]) * load(kept.kv + t * 2 * w + h * dh + d);
          float *dk = dkv + t * 2 * w + h * dh + d, *dv = dk + w;
          store(dk, load(dk) + all(row[t]) * q);
          store(dv, load(dv) + all(share[t]) * out);
        }
        store(dq + p * w + h * dh + d, sum);
      }
    }
  }
}

// Rows of x (sequences, tokens, width) at the queries' positions; x itself where all are asked for.
const float* rows_at(const Shape& s, const int64_t* positions, int64_t first, int64_t sequences, const float* x,
                     std::vector<float>& buffer) {
  if (!positions) return x;
  buffer.resize(sequences * s.queries * s.width);
  for (int64_t i = 0; i < sequences; ++i)
    for (int64_t p = 0; p < s.queries; ++p)
      std::copy_n(x + (i * s.tokens + position_of(s, positions, first + i, p)) * s.width, s.width,
                  buffer.data() + (i * s.queries + p) * s.width);
  return buffer.data();
}

// The inverse: rows at the queries' positions are added to theirs.
void add_at(const Shape& s, const int64_t* positions, int64_t first, int64_t sequences, const float* rows, float* out) {
  for (int64_t i = 0; i < sequences; ++i)
    for (int64_t p = 0; p < s.queries; ++p) {
      const float* from = rows + (i * s.queries + p) * s.width;
      float* to = out + (i * s.tokens + position_of(s, positions, first + i, p)) * s.width;
      for (int64_t t = 0; t < s.width; ++t) to[t] += from[t];
    }
}

// sums of two rows, one of them the same for all
void add_to_rows(const float* x, const float* bias, int64_t rows, int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t t = 0; t < width; ++t) out[r * width + t] = x[r * width + t] + bias[t];
}

// Weights of linear layers with a row an input, as forward products read them.
struct Mirrored {
  std::vector<float> qkv, out, fc, proj;

  Mirrored(const Shape& s, const float* const* w)
      : qkv(3 * s.width * s.width), out(s.width * s.width), fc(s.inner * s.width), proj(s.inner * s.width) {
    mirror(w[QKV], 3 * s.width, s.width, qkv.data());
    mirror(w[OUT], s.width, s.width, out.data());
    mirror(w[FC], s.inner, s.width, fc.data());
    mirror(w[PROJ], s.width, s.inner, proj.data());
  }
};

}  // namespace

// Floats that the forward keeps for the backward.
extern "C" int64_t transformer_block_keeps(int64_t batch, int64_t tokens, int64_t queries, int64_t width, int64_t heads,
                                           int64_t inner) {
  return Kept::size({batch, tokens, queries, width, heads, inner}, batch);
}

// x (batch, tokens, width), positions (batch, queries) or nullptr for all tokens -> y (batch, queries, width);
// kept: what the backward needs, or nullptr
extern "C" void transformer_block(const float* x, const int64_t* positions, const float* const* w, int64_t batch,
                                  int64_t tokens, int64_t queries, int64_t width, int64_t heads, int64_t inner, float* y,
                                  float* kept, int32_t threads) {
  const Shape s{batch, tokens, queries, width, heads, inner};
  const Mirrored mirrored(s, w);
  const int64_t group = s.together();
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> own(kept ? 0 : Kept::size(s, group)), normed(group * std::max(tokens, queries) * width), scratch;
    std::vector<float> chosen, residual;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < batch; first += group) {
      const int64_t count = std::min(group, batch - first), rows = count * queries;
      const Kept at = kept ? Kept(s, kept, batch, first) : Kept(s, own.data(), group, 0);
      const float* in = x + first * tokens * width;
      normalise(in, count * tokens, width, w[LN1], w[LN1_BIAS], normed.data());
      multiply({normed.data(), width, 1}, mirrored.qkv.data() + width, 3 * width, count * tokens, width, 2 * width,
               {w[QKV_BIAS] + width, 0}, at.kv, 2 * width);
      const float* asked = rows_at(s, positions, first, count, normed.data(), chosen);
      multiply({asked, width, 1}, mirrored.qkv.data(), 3 * width, rows, width, width, {w[QKV_BIAS], 0}, at.q, width);
      for (int64_t i = 0; i < count; ++i) {
        Kept of_sequence = at;
        of_sequence.q += i * queries * width;
        of_sequence.kv += i * tokens * 2 * width;
        of_sequence.mixed += i * queries * width;
        of_sequence.shares += i * heads * queries * tokens;
        attend(s, positions, first + i, of_sequence, scratch);
      }
      add_to_rows(rows_at(s, positions, first, count, in, residual), w[OUT_BIAS], rows, width, at.middle);
      multiply({at.mixed, width, 1}, mirrored.out.data(), width, rows, width, width, {at.middle, width}, at.middle, width);
      normalise(at.middle, rows, width, w[LN2], w[LN2_BIAS], normed.data());
      multiply({normed.data(), width, 1}, mirrored.fc.data(), inner, rows, width, inner, {w[FC_BIAS], 0}, at.active, inner);
      gelu(at.active, rows * inner, kept ? at.slope : nullptr);
      float* out = y + first * queries * width;
      add_to_rows(at.middle, w[PROJ_BIAS], rows, width, out);
      multiply({at.active, inner, 1}, mirrored.proj.data(), width, rows, inner, width, {out, width}, out, width);
    }
  }
}

// dy (batch, queries, width) -> dx (batch, tokens, width) and the gradients of all weights, each in its place of dw
extern "C" void transformer_block_backward(const float* dy, const float* x, const int64_t* positions, const float* const* w,
                                           const float* kept, int64_t batch, int64_t tokens, int64_t queries,
                                           int64_t width, int64_t heads, int64_t inner, float* dx, float* const* dw,
                                           int32_t threads) {
  const Shape s{batch, tokens, queries, width, heads, inner};
  const Sizes sizes(s);
  const int64_t group = s.together(), groups = (batch + group - 1) / group;
  const int64_t parts = std::max<int64_t>(1, std::min({PARTS, groups, batch * tokens / ROWS_A_PART}));
  std::vector<float> sums(parts * sizes.whole, 0.0f);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t part = 0; part < parts; ++part) {
    float* d[WEIGHTS];
    for (int64_t i = 0, at = part * sizes.whole; i < WEIGHTS; at += sizes.of[i++]) d[i] = sums.data() + at;
    const int64_t most = group * std::max(tokens, queries), wide = std::max(width, inner);
    std::vector<float> normed(most * width), input(most * width), inverse(most), scratch;
    std::vector<float> dhidden(most * wide), dnormed(most * width), dmiddle(most * width), dmixed(most * width);
    std::vector<float> dq(most * width), dkv(most * 2 * width), chosen;
    for (int64_t first = part * groups / parts * group; first < std::min((part + 1) * groups / parts * group, batch);
         first += group) {
      const int64_t count = std::min(group, batch - first), rows = count * queries, all_rows = count * tokens;
      const Kept at(s, const_cast<float*>(kept), batch, first);
      const float *in = x + first * tokens * width, *dout = dy + first * queries * width;
      // the MLP
      multiply({dout, 1, width}, at.active, inner, width, rows, inner, {d[PROJ], inner}, d[PROJ], inner);
      add_rows(dout, rows, width, d[PROJ_BIAS]);
      multiply({dout, width, 1}, w[PROJ], inner, rows, width, inner, {nullptr, 0}, dhidden.data(), inner);
      for (int64_t i = 0; i < rows * inner; ++i) dhidden[i] *= at.slope[i];
      normalise(at.middle, rows, width, w[LN2], w[LN2_BIAS], input.data(), normed.data(), inverse.data());
      multiply({dhidden.data(), 1, inner}, input.data(), width, inner, rows, width, {d[FC], width}, d[FC], width);
      add_rows(dhidden.data(), rows, inner, d[FC_BIAS]);
      multiply({dhidden.data(), inner, 1}, w[FC], width, rows, inner, width, {nullptr, 0}, dnormed.data(), width);
      std::copy_n(dout, rows * width, dmiddle.data());
      normalise_backward(dnormed.data(), normed.data(), inverse.data(), rows, width, w[LN2], dmiddle.data(), d[LN2],
                         d[LN2_BIAS]);
      // attention
      multiply({dmiddle.data(), 1, width}, at.mixed, width, width, rows, width, {d[OUT], width}, d[OUT], width);
      add_rows(dmiddle.data(), rows, width, d[OUT_BIAS]);
      multiply({dmiddle.data(), width, 1}, w[OUT], width, rows, width, width, {nullptr, 0}, dmixed.data(), width);
      std::fill_n(dkv.data(), all_rows * 2 * width, 0.0f);
      for (int64_t i = 0; i < count; ++i) {
        Kept of_sequence = at;
        of_sequence.q += i * queries * width;
        of_sequence.kv += i * tokens * 2 * width;
        of_sequence.shares += i * heads * queries * tokens;
        attend_backward(s, positions, first + i, of_sequence, dmixed.data() + i * queries * width,
                        dq.data() + i * queries * width, dkv.data() + i * tokens * 2 * width, scratch);
      }
      normalise(in, all_rows, width, w[LN1], w[LN1_BIAS], input.data(), normed.data(), inverse.data());
      const float* asked = rows_at(s, positions, first, count, input.data(), chosen);
      multiply({dq.data(), 1, width}, asked, width, width, rows, width, {d[QKV], width}, d[QKV], width);
      add_rows(dq.data(), rows, width, d[QKV_BIAS]);
      multiply({dkv.data(), 1, 2 * width}, input.data(), width, 2 * width, all_rows, width,
               {d[QKV] + width * width, width}, d[QKV] + width * width, width);
      add_rows(dkv.data(), all_rows, 2 * width, d[QKV_BIAS] + width);
      multiply({dkv.data(), 2 * width, 1}, w[QKV] + width * width, width, all_rows, 2 * width, width, {nullptr, 0},
               dnormed.data(), width);
      // dhidden's room is free again
      multiply({dq.data(), width, 1}, w[QKV], width, rows, width, width, {nullptr, 0}, dhidden.data(), width);
      add_at(s, positions, first, count, dhidden.data(), dnormed.data());
      float* to = dx + first * tokens * width;
      std::fill_n(to, all_rows * width, 0.0f);
      add_at(s, positions, first, count, dmiddle.data(), to);
      normalise_backward(dnormed.data(), normed.data(), inverse.data(), all_rows, width, w[LN1], to, d[LN1], d[LN1_BIAS]);
    }
  }
  for (int64_t i = 0, at = 0; i < WEIGHTS; at += sizes.of[i++]) {
    std::copy_n(sums.data() + at, sizes.of[i], dw[i]);
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t j = 0; j < sizes.of[i]; ++j) dw[i][j] += sums[part * sizes.whole + at + j];
  }
}
