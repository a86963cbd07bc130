// Causal attention of a tile of a prompt's positions to all positions before them.
//
// The G query heads of a KV head make G rows of each position. Keys come in tiles; a tile is laid out anew, once for
// all rows: keys by channel, values by key. Then, kRows rows at a time, it goes through three steps: the scores, their
// exponentials under a running maximum, and the weighted sum of values. Both products are one function, `add_products`.
#pragma once

#include "bodies/channels.h"

namespace {

using namespace scout;

constexpr int kTileVectors = kCausalKeys / W;        // of scores of a row
constexpr int kColumns = W == 16 ? 4 : 2;            // vectors of a row that are summed at once: with kRows rows their
constexpr int kRows = kCausalRows;                   // sums leave registers for what they are sums of

static_assert(kTileVectors % kColumns == 0);

// How two rows of T are multiplied: one number after the other, as floats.
template <class T>
struct Product {
    static constexpr int numbers = 1;  // in each 32 bits of a row

    static SCOUT_INLINE Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
    // Words i, i + 1, ... of a row of n numbers, followed by zeros.
    static SCOUT_INLINE Vec words(const T* row, int64_t i, int64_t n) {
        if constexpr (Loader<T>::per_word == 1) return n - i >= W ? load(row + i) : load_words(row + i, n - i);
        const int64_t first = i / (2 * W) * (2 * W);
        Pair x = first + 2 * W <= n ? Loader<T>::load(row + first) : load_tail(row + first, n - first);
        if constexpr (Loader<T>::interleaved) x = merged(x, AllLanes());
        return i == first ? x.even : x.odd;
    }
    // A row of values, of one key.
    static SCOUT_INLINE void lay_values(const T* const rows[1], int64_t n, float* to) {
        for (int64_t i = 0; i < n; i += W) store(to + i, rows[0] ? words(rows[0], i, n) : Vec{});
    }
    static SCOUT_INLINE void lay_weights(const Vec* weights, float* to) {
        __builtin_memcpy(to, weights, kCausalKeys * sizeof(float));
    }
};

#if defined(__AVX512BF16__)
// Two numbers after two, in the instruction for products of bfloat16, which sums in float32.
template <>
struct Product<BFloat16> {
    static constexpr int numbers = 2;

    static SCOUT_INLINE Vec add(Vec sum, Vec a, Vec b) {
        return _mm512_dpbf16_ps(__m512(sum), __m512bh(__m512i(a)), __m512bh(__m512i(b)));
    }
    static SCOUT_INLINE Vec words(const BFloat16* row, int64_t i, int64_t n) {
        const int64_t rest = n - 2 * i;
        const __mmask32 mask = rest < 2 * W ? (1u << rest) - 1 : ~0u;
        return Vec(_mm512_maskz_loadu_epi16(mask, row + 2 * i));
    }
    // Rows of values, of two keys; a null row is zeros.
    static SCOUT_INLINE void lay_values(const BFloat16* const rows[2], int64_t n, float* to) {
        for (int64_t i = 0; i < n; i += W) {
            const int64_t rest = n - i < W ? n - i : W;
            const __mmask16 mask = __mmask16((1u << rest) - 1);
            __m512i word[2];
            for (int r = 0; r < 2; ++r)
                word[r] = rows[r] ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rows[r] + i))
                                  : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(to + i, mask, _mm512_or_si512(word[0], _mm512_slli_epi32(word[1], 16)));
        }
    }
    static SCOUT_INLINE void lay_weights(const Vec* weights, float* to) {
        for (int i = 0; i < kTileVectors; i += 2) {
            const __m512bh pairs = _mm512_cvtne2ps_pbh(__m512(weights[i + 1]), __m512(weights[i]));
            __builtin_memcpy(to + i / 2 * W, &pairs, sizeof pairs);
        }
    }
};
#endif

// sums[r][c] = factors[r] * sums[r][c] + the sum over `steps` words w of rows[r][w] * columns[w][c], for kRows rows and
// COLUMNS vectors c. Where `factors` is null, sums begin at 0.
template <class P, int COLUMNS>
SCOUT_INLINE void add_products(const float* rows, int64_t row_stride, const float* columns, int64_t column_stride,
                               int64_t steps, const float* factors, float* sums, int64_t sum_stride) {
    Vec sum[kRows][COLUMNS];
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < COLUMNS; ++c)
            sum[r][c] = factors ? factors[r] * load(sums + r * sum_stride + c * W) : Vec{};
    for (int64_t w = 0; w < steps; ++w) {
        Vec column[COLUMNS];
        for (int c = 0; c < COLUMNS; ++c) column[c] = load(columns + w * column_stride + c * W);
        for (int r = 0; r < kRows; ++r) {
            const Vec row = splat_word(rows + r * row_stride + w);
            for (int c = 0; c < COLUMNS; ++c) sum[r][c] = P::add(sum[r][c], row, column[c]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < COLUMNS; ++c) store(sums + r * sum_stride + c * W, sum[r][c]);
}

// The memory of a task. Rows are those of all positions, padded to whole groups of kRows.
struct CausalMemory {
    int64_t words, width;  // of a query; of a row of sums, in floats
    float *q, *out;        // [rows, words], [rows, width]
    float *most, *sum;     // [rows], [rows, W]
    float *keys, *values;  // [words, kCausalKeys], [kCausalKeys, width]
    float *scores;         // [kRows, kCausalKeys]

    SCOUT_INLINE CausalMemory(const CausalRun& run, int numbers, int64_t rows)
        : words((run.dim + numbers - 1) / numbers), width(padded(run.dim)) {
        q = run.scratch, out = q + rows * words;
        sum = out + rows * width, most = sum + rows * W;
        keys = most + rows, values = keys + words * kCausalKeys, scores = values + kCausalKeys * width;
    }
};

// Lays out n keys and values; lanes and rows beyond them are zero.
template <class T>
SCOUT_INLINE void lay_tile(const CausalRun& run, const CausalMemory& memory, int64_t first, int64_t n) {
    using P = Product<T>;
    const T *k = (const T*)run.k + first * run.token, *v = (const T*)run.v + first * run.token;
    for (int64_t key = 0; key < kCausalKeys; key += W)
        for (int64_t w = 0; w < memory.words; w += W) {
            Vec x[W];
            for (int i = 0; i < W; ++i) x[i] = key + i < n ? P::words(k + (key + i) * run.token, w, run.dim) : Vec{};
            transpose(x);
            for (int i = 0; i < W; ++i) {
                const int64_t word = w + transposed_lane(i);
                if (word < memory.words) store(memory.keys + word * kCausalKeys + key, x[i]);
            }
        }
    for (int64_t i = 0; i < kCausalKeys; i += P::numbers) {
        const T* rows[P::numbers];
        for (int r = 0; r < P::numbers; ++r) rows[r] = i + r < n ? v + (i + r) * run.token : nullptr;
        P::lay_values(rows, run.dim, memory.values + i / P::numbers * memory.width);
    }
}

// The exponentials of a row's scores of a tile, of which the first n count, where the weights of products are read
// from; returns by what the sums so far are multiplied.
template <class P>
SCOUT_INLINE float weigh_row(float* row, int64_t n, float scale, float* most, float* sum) {
    Vec x[kTileVectors];
    Vec largest = splat(*most);
    for (int c = 0; c < kTileVectors; ++c) {
        x[c] = scale * load(row + c * W);
        if (n < (c + 1) * W) x[c] = first_lanes(x[c], n - c * W);
        largest = larger(x[c], largest);
    }
    const float before = *most, now = exceeds(largest, before) ? max_lane(largest) : before;  // seldom more than before
    Vec total = Vec{};
    for (int c = 0; c < kTileVectors; ++c) total += x[c] = exp_negative(x[c] - now);
    P::lay_weights(x, row);
    *most = now;
    const float factor = before == now ? 1 : exp_negative(splat(before - now))[0];
    store(sum, factor * load(sum) + total);
    return factor;
}

template <class T>
void causal(const CausalRun& run) {
    using P = Product<T>;
    const int64_t count = run.positions * run.heads, rows = (count + kRows - 1) / kRows * kRows;
    const CausalMemory memory(run, P::numbers, rows);
    __builtin_memset(memory.q, 0, rows * (memory.words + memory.width + W) * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) memory.most[r] = -kInfinity;
    for (int64_t r = 0; r < count; ++r)
        for (int64_t w = 0; w < memory.words; w += W) {
            const T* row = (const T*)run.q + r / run.heads * run.row + r % run.heads * run.dim;
            const Vec x = P::words(row, w, run.dim);
            const int64_t rest = memory.words - w < W ? memory.words - w : W;
            __builtin_memcpy(memory.q + r * memory.words + w, &x, rest * sizeof(float));
        }
    const int64_t total = run.first + run.positions;
    for (int64_t key = 0; key < total; key += kCausalKeys) {
        lay_tile<T>(run, memory, key, total - key < kCausalKeys ? total - key : kCausalKeys);
        for (int64_t r = 0; r < rows; r += kRows) {
            const int64_t last = r + kRows <= count ? r + kRows - 1 : count - 1;
            if (run.first + last / run.heads < key) continue;
            for (int c = 0; c < kTileVectors; c += kColumns)
                add_products<P, kColumns>(memory.q + r * memory.words, memory.words, memory.keys + c * W, kCausalKeys,
                                          memory.words, nullptr, memory.scores + c * W, kCausalKeys);
            float factors[kRows];
            for (int i = 0; i < kRows; ++i) {
                const int64_t at = r + i, seen = run.first + (at < last ? at : last) / run.heads + 1 - key;
                factors[i] = weigh_row<P>(memory.scores + i * kCausalKeys, seen, run.scale, memory.most + at,
                                          memory.sum + at * W);
            }
            int64_t c = 0;
            float* out = memory.out + r * memory.width;
            for (; c + kColumns * W <= memory.width; c += kColumns * W)
                add_products<P, kColumns>(memory.scores, kCausalKeys, memory.values + c, memory.width,
                                          kCausalKeys / P::numbers, factors, out + c, memory.width);
            if (c < memory.width)
                add_products<P, 2>(memory.scores, kCausalKeys, memory.values + c, memory.width,
                                   kCausalKeys / P::numbers, factors, out + c, memory.width);
        }
    }
    for (int64_t r = 0; r < count; ++r) {
        const float inverse = 1 / sum_lanes(load(memory.sum + r * W));
        float *from = memory.out + r * memory.width, *to = run.out + r / run.heads * run.row + r % run.heads * run.dim;
        for (int64_t c = 0; c < memory.width; c += W) store(from + c, inverse * load(from + c));
        __builtin_memcpy(to, from, run.dim * sizeof(float));
    }
}

}  // namespace
