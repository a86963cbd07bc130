// Scores of pages whose keys are kept in 2 bits a channel: channel d of a key is about least[d] + code * step[d].
//
// The products s = q * step are rounded to integers r in -127..127 times a factor, for each page and head, so that
//
//     q . key = q . least + s . code, about factor * (r . code) + q . (least + 1.5 step) - 1.5 * factor * sum(r):
//
// the rounding error of the mean code, 1.5, is corrected. r . code is a sum of integers, four channels of W keys at a
// time, and the page's score is the log-sum-exp over its keys.
#pragma once

#include "bodies/codes.h"

namespace {

constexpr float kMeanCode = 1.5f, kLogOf2 = 0.693147181f;
constexpr int64_t kPagesOfCodesAhead = 8;  // pages whose codes are prefetched before they are read; of bounds, W pages

// Natural logarithm of x >= 1, absolute error below 2e-7 times log2(x): x = 2^e m with m about 1, and
// log(m) = 2 atanh(t) with t = (m - 1) / (m + 1), |t| < 0.172.
SCOUT_INLINE Vec log_at_least_one(Vec x) {
    const Bits least = Bits{} + 0x3f3504f3u;  // the square root of 1/2
    const Bits e = (Bits(x) - least) >> 23;
    const Vec m = Vec(Bits(x) - (e << 23)), t = (m - 1.0f) / (m + 1.0f), s = t * t;
    const Vec log_m = 2.0f * t + t * s * (2.0f / 3 + s * (2.0f / 5 + s * (2.0f / 7)));
    return __builtin_convertvector(IntVec(e), Vec) * kLogOf2 + log_m;
}

// 2^x for x <= 0, relative error below 1.1e-4, exact for 0: scores need no more.
SCOUT_INLINE Vec exp2_roughly(Vec x) {
#if defined(__AVX512F__)
    const Vec f = _mm512_maskz_reduce_ps(0xffff, __m512(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    constexpr float least = -126;
    const Vec y = larger(x, splat(least)), shifted = y - 0.5f + kRound, f = y - (shifted - kRound);
#endif
    const Vec power = ((0.0782675f * f + 0.2263083f) * f + 0.6954242f) * f + 1.0f;
#if defined(__AVX512F__)
    return _mm512_maskz_scalef_ps(0xffff, __m512(power), __m512(x));
#else
    return x < splat(least) ? Vec{} : Vec(Bits(power) + (Bits(shifted) << 23));
#endif
}

// The memory of a task. Rows are padded with zeros. The pages are W at a time.
struct KeyCodeScratch {
    float *q, *size;          // [G, code_row]; size: magnitudes of q
    float *factor, *inverse;  // [G, W pages]: the factor of a page's integers, and its inverse
    float *rest;              // [G, W pages, W]: the part of their scores that a page's keys share, lane by lane
    float *lanes;             // [G, W pages, W]: to be folded over the last
    float *scores;            // [G, W pages, P in whole vectors], less the rest, to base 2
    int8_t *rounded;          // [W pages, G, code_row]: q * step, rounded
    int64_t keys, row;

    KeyCodeScratch(const KeyCodeRun& run) : keys((run.positions + W - 1) / W * W), row(code_row(run.dim)) {
        const int64_t heads = run.heads;
        q = run.scratch, size = q + heads * row;
        factor = size + heads * row, inverse = factor + heads * W;
        rest = inverse + heads * W, lanes = rest + heads * W * W, scores = lanes + heads * W * W;
        rounded = reinterpret_cast<int8_t*>(scores + heads * W * keys);
        __builtin_memset(q, 0, heads * row * sizeof(float));
        for (int64_t g = 0; g < heads; ++g) __builtin_memcpy(q + g * row, run.q + g * run.dim, run.dim * sizeof(float));
        for (int64_t c = 0; c < heads * row; c += W) store(size + c, magnitude(load(q + c)));
    }
};

// Pages that are scored together: the next W of the list, or all that are left.
struct PageGroup {
    const int32_t* pages;
    int64_t left;

    SCOUT_INLINE int64_t count() const { return left < W ? left : W; }
    SCOUT_INLINE int32_t later(int64_t i) const { return pages[i < left ? i : left - 1]; }
};

SCOUT_INLINE const Float16* page_bounds(const KeyCodeRun& run, int32_t page) {
    return reinterpret_cast<const Float16*>(run.bounds) + page * run.bounds_page;
}

// The factors of all heads and pages: the largest product is to be 127.
SCOUT_INLINE void find_factors(const KeyCodeRun& run, const KeyCodeScratch& s, PageGroup group) {
    constexpr float least = 1e-30f;
    for_head_tiles(run.heads, [&](int64_t g, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        for (int64_t i = 0; i < group.count(); ++i) {
            const Float16* steps = page_bounds(run, group.pages[i]) + run.bounds_row;
            Vec most[HEADS] = {};
            for (int64_t c = 0; c < run.dim; c += 2 * W) {
                const Pair step = channels(steps, c, run.dim);
                const Vec even = magnitude(step.even), odd = magnitude(step.odd);
                for (int h = 0; h < HEADS; ++h) {
                    const float* size = s.size + (g + h) * s.row + c;
                    most[h] = larger(most[h], larger(load(size) * even, load(size + W) * odd));
                }
            }
            for (int h = 0; h < HEADS; ++h) store(s.lanes + ((g + h) * W + i) * W, most[h]);
        }
    });
    for (int64_t g = 0; g < run.heads; ++g) {
        const Vec most = fold_rows<Largest>(s.lanes + g * W * W);
        store(s.factor + g * W, most / 127.0f);
        store(s.inverse + g * W, most > splat(least) ? 127.0f / most : Vec{});
    }
}

// Products of page i's steps with the heads from g on, rounded, and the part of the scores that its keys share.
// Meanwhile prefetches bounds.
template <int HEADS>
SCOUT_INLINE void round_products(const KeyCodeRun& run, const KeyCodeScratch& s, PageGroup group, int64_t i,
                                 int64_t g) {
    const int64_t dim = run.dim, row = run.bounds_row;
    const Float16 *least = page_bounds(run, group.pages[i]), *later = page_bounds(run, group.later(i + W));
    Vec rest[HEADS] = {};
    IntVec sum[HEADS] = {};
    const auto round = [&](int64_t c, auto vectors) {
        constexpr int VECTORS = decltype(vectors)::value;
        Vec step[VECTORS], middle[VECTORS];
        for (int v = 0; v < VECTORS; v += 2) {
            const int64_t at = c + v * W;
            prefetch(later + at, at), prefetch(later + row + at, at);
            const Pair low = channels(least, at, dim), steps = channels(least + row, at, dim);
            step[v] = steps.even, step[v + 1] = steps.odd;
            middle[v] = low.even + kMeanCode * steps.even, middle[v + 1] = low.odd + kMeanCode * steps.odd;
        }
        for (int h = 0; h < HEADS; ++h) {
            const float* q = s.q + (g + h) * s.row + c;
            const float inverse = s.inverse[(g + h) * W + i];
            Vec x[4] = {};
            for (int v = 0; v < VECTORS; ++v) {
                x[v] = load(q + v * W) * step[v] * inverse;
                rest[h] += load(q + v * W) * middle[v];
            }
            const IntVec bytes = whole_bytes(x);
            sum[h] = dot4(sum[h], Bits{} + 0x01010101u, bytes);
            __builtin_memcpy(s.rounded + (i * run.heads + g + h) * s.row + c, &bytes, sizeof bytes);
        }
    };
    for (int64_t c = 0; c < dim; c += 4 * W)
        if (dim - c > 2 * W) round(c, Int<4>());
        else round(c, Int<2>());
    for (int h = 0; h < HEADS; ++h) {
        const int64_t at = (g + h) * W + i;
        store(s.rest + at * W, rest[h] - kMeanCode * s.factor[at] * __builtin_convertvector(sum[h], Vec));
    }
}

// Products of VECTORS times W keys with HEADS heads; load(v, w) gives word w of the keys of vector v.
template <int HEADS, int VECTORS, class Load>
SCOUT_INLINE void code_dots(Load load, const int8_t* rounded, int64_t dim, IntVec sums[HEADS][VECTORS]) {
    const int64_t row = code_row(dim);
    for (int i = 0; i < HEADS * VECTORS; ++i) sums[i / VECTORS][i % VECTORS] = IntVec{};
    for (int64_t w = 0; w < code_words(dim); ++w) {
        Bits words[VECTORS];
        for (int v = 0; v < VECTORS; ++v) words[v] = load(v, w);
        for (int j = 0; j < 4; ++j)
            for (int h = 0; h < HEADS; ++h) {
                int32_t four;
                __builtin_memcpy(&four, rounded + h * row + 16 * w + 4 * j, sizeof four);
                for (int v = 0; v < VECTORS; ++v)
                    sums[h][v] = dot4(sums[h][v], words[v] >> (2 * j) & 0x03030303u, IntVec{} + four);
            }
    }
}

// Scores of page i's keys for the heads from g on, -inf where the last vector has no key. Meanwhile prefetches codes.
template <int HEADS>
SCOUT_INLINE void score_keys(const KeyCodeRun& run, const KeyCodeScratch& s, PageGroup group, int64_t i, int64_t g) {
    const int32_t page = group.pages[i];
    const uint8_t* codes = run.codes + page * run.codes_page;
    const int64_t ahead = g ? 0 : (group.later(i + kPagesOfCodesAhead) - int64_t(page)) * run.codes_page;
    Vec most[HEADS];
    for (Vec& x : most) x = splat(-kInfinity);
    const auto score = [&](int64_t first, auto vectors, auto load) {
        constexpr int VECTORS = decltype(vectors)::value;
        IntVec sums[HEADS][VECTORS];
        const auto load_and_prefetch = [&](int v, int64_t w) {
            const uint8_t* at = codes + 4 * (w * run.positions + first + v * W);
            __builtin_prefetch(at + ahead);
            return load(at);
        };
        code_dots<HEADS, VECTORS>(load_and_prefetch, s.rounded + (i * run.heads + g) * s.row, run.dim, sums);
        for (int h = 0; h < HEADS; ++h)
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t row = (g + h) * W + i, key = first + v * W, keys = run.positions - key;
                const Vec all = __builtin_convertvector(sums[h][v], Vec) * (s.factor[row] * (1 / kLogOf2));
                const Vec scores = keys < W ? first_lanes(all, keys) : all;
                store(s.scores + row * s.keys + key, scores);
                most[h] = larger(most[h], scores);
            }
    };
    int64_t first = 0;
    for (; first + 2 * W <= run.positions; first += 2 * W)
        score(first, Int<2>(), [](const uint8_t* at) { return load_bits(at); });
    for (; first < run.positions; first += W)
        score(first, Int<1>(), [&](const uint8_t* at) { return load_words(at, run.positions - first); });
    for (int h = 0; h < HEADS; ++h) store(s.lanes + ((g + h) * W + i) * W, most[h]);
}

// Log-sum-exp of the scores of W pages for head g.
SCOUT_INLINE Vec join_scores(const KeyCodeScratch& s, int64_t g) {
    float* lanes = s.lanes + g * W * W;
    const Vec most = fold_rows<Largest>(lanes);
    for (int i = 0; i < W; ++i) {
        const float* scores = s.scores + (g * W + i) * s.keys;
        Vec sum = {};
        for (int64_t p = 0; p < s.keys; p += W) sum += exp2_roughly(load(scores + p) - most[i]);
        store(lanes + i * W, sum);
    }
    return fold_rows<Sum>(s.rest + g * W * W) + kLogOf2 * most + log_at_least_one(fold_rows<Sum>(lanes));
}

// Prefetches memory.
SCOUT_INLINE void prefetch_bytes(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch((const char*)from + at);
}

void score_key_codes(const KeyCodeRun& run) {
    const KeyCodeScratch s(run);
    for (int64_t i = 0; i < W && i < run.count; ++i) prefetch_bytes(page_bounds(run, run.pages[i]), 2 * (run.bounds_row + run.dim));
    for (int64_t i = 0; i < kPagesOfCodesAhead && i < run.count; ++i)
        prefetch_bytes(run.codes + run.pages[i] * run.codes_page, 4 * code_words(run.dim) * run.positions);
    for (int64_t first = 0; first < run.count; first += W) {
        const PageGroup group = {run.pages + first, run.count - first};
        find_factors(run, s, group);
        for_head_tiles(run.heads, [&](int64_t g, auto tile) {
            constexpr int HEADS = decltype(tile)::value;
            for (int64_t i = 0; i < group.count(); ++i) round_products<HEADS>(run, s, group, i, g);
            for (int64_t i = 0; i < group.count(); ++i) score_keys<HEADS>(run, s, group, i, g);
        });
        for (int64_t g = 0; g < run.heads; ++g) {
            const Vec scores = join_scores(s, g);
            __builtin_memcpy(run.out + g * run.out_stride + first, &scores, group.count() * sizeof(float));
        }
    }
}

}  // namespace
