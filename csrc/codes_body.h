// Scores of pages whose keys are kept in 2 bits a channel: channel d of a key is about least[d] + code * step[d].
//
// The products s = q * step are rounded to whole numbers r in -127..127 times a factor, for each page and head, so that
//
//     q . key = q . least + s . code, about factor * (r . code) + q . (least + 1.5 step) - 1.5 * factor * sum(r):
//
// what rounding loses on the mean code, 1.5, is given back. r . code is made of whole numbers, four channels of W keys
// at a time, and the page's score is the log-sum-exp over its keys.
#pragma once

#include "tiles.h"

namespace {

constexpr float kMeanCode = 1.5f;

// sum + a[0] b[0] + ... + a[3] b[3] in every lane of four bytes: a in 0..3, b in -127..127.
SCOUT_INLINE IntVec dot4(IntVec sum, Bits a, IntVec b) {
#if defined(__AVX512VNNI__)
    return IntVec(_mm512_dpbusd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16(__m512i(a), __m512i(b));
    return sum + IntVec(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(__m256i(a), __m256i(b));
    return sum + IntVec(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    typedef int16_t Shorts __attribute__((vector_size(4 * W)));
    const Shorts even = Shorts(a & 0x00ff00ffu) * (Shorts(b) << 8 >> 8);
    const Shorts odd = Shorts(a >> 8 & 0x00ff00ffu) * (Shorts(b) >> 8);
    const IntVec pairs = IntVec(even + odd);
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
#endif
}

// The lowest byte of every lane.
SCOUT_INLINE void store_bytes(int8_t* p, Vec x) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8(0xffff, __m512i(x)));
#elif defined(__AVX2__)
    const __m256i lowest = _mm256_set1_epi32(0x0c080400), each = _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(__m256i(x), lowest), each);
    _mm_storel_epi64((__m128i*)p, _mm256_castsi256_si128(bytes));
#else
    for (int i = 0; i < W; ++i) p[i] = int8_t(Bits(x)[i]);
#endif
}

// Natural logarithm of x >= 1, absolute error below 2e-7 times log2(x): x = 2^e m with m about 1, and
// log(m) = 2 atanh(t) with t = (m - 1) / (m + 1), |t| < 0.172.
SCOUT_INLINE Vec log_at_least_one(Vec x) {
    const Bits least = Bits{} + 0x3f3504f3u;  // the square root of 1/2
    const Bits e = (Bits(x) - least) >> 23;
    const Vec m = Vec(Bits(x) - (e << 23)), t = (m - 1.0f) / (m + 1.0f), s = t * t;
    const Vec log_m = 2.0f * t + t * s * (2.0f / 3 + s * (2.0f / 5 + s * (2.0f / 7)));
    return __builtin_convertvector(IntVec(e), Vec) * 0.693147181f + log_m;
}

// The channels of a row in order, as floats.
template <class T>
SCOUT_INLINE void widen(const T* row, int64_t dim, float* out) {
    for_pairs<T>(dim, [&](int64_t c, auto load_pair) {
        const Pair x = load_pair(row);
        if constexpr (Row<T>::interleaved) {
            for (int i = 0; i < W; ++i) out[c + 2 * i] = x.even[i], out[c + 2 * i + 1] = x.odd[i];
        } else {
            store(out + c, x.even);
            store(out + c + W, x.odd);
        }
    });
}

// The memory of a task. Rows are padded with zeros. The pages are W at a time.
struct CodeScratch {
    float *q;                 // [G, padded D]
    float *middle, *step;     // the keys of a page whose every code is the mean one, and the step; [padded D]
    float *factor, *inverse;  // [G, W pages]: what whole numbers of a page count, and how many of them make 1
    float *lanes;             // [G, W pages, W]: to be folded over the last
    float *scores;            // [G, W pages, P in whole vectors], less what is the same for all keys of a page
    int8_t *rounded;          // [G, padded D]: a page's q * step, in whole numbers
    int64_t row;              // of scores

    CodeScratch(const CodeRun& run) : row((run.positions + W - 1) / W * W) {
        const int64_t heads = run.heads, size = padded(run.dim);
        __builtin_memset(run.scratch, 0, code_scratch_floats(heads, run.dim, run.positions) * sizeof(float));
        q = run.scratch, middle = q + heads * size, step = middle + size;
        factor = step + size, inverse = factor + heads * W, lanes = inverse + heads * W;
        scores = lanes + heads * W * W;
        rounded = reinterpret_cast<int8_t*>(scores + heads * W * row);
        for (int64_t g = 0; g < heads; ++g) widen(run.q + g * run.dim, run.dim, q + g * size);
    }
};

SCOUT_INLINE const Float16* page_bounds(const CodeRun& run, int32_t page) {
    return reinterpret_cast<const Float16*>(run.bounds) + page * run.bounds_page;
}

// The factors of n <= W pages: the largest product is to be 127.
SCOUT_INLINE void find_factors(const CodeRun& run, const CodeScratch& s, const int32_t* pages, int64_t n) {
    constexpr float least = 1e-30f;
    for (int64_t i = 0; i < n; ++i) {
        widen(page_bounds(run, pages[i]) + run.dim, run.dim, s.step);
        for (int64_t g = 0; g < run.heads; ++g) {
            const float* q = s.q + g * padded(run.dim);
            Vec most = {};
            for (int64_t c = 0; c < run.dim; c += W) {
                most = larger(most, magnitude(load(q + c) * load(s.step + c)));
            }
            store(s.lanes + (g * W + i) * W, most);
        }
    }
    for (int64_t g = 0; g < run.heads; ++g) {
        const Vec most = fold_rows<Largest>(s.lanes + g * W * W);
        store(s.factor + g * W, most / 127.0f);
        store(s.inverse + g * W, most > splat(least) ? 127.0f / most : Vec{});
    }
}

// Products of the bounded page, number `lane` of the W, with head g, in whole numbers. Returns the rest of the page's
// scores, which is the same for all of its keys, as a vector to be summed.
SCOUT_INLINE Vec round_products(const CodeScratch& s, int64_t g, int64_t lane, int64_t dim) {
    constexpr float round = 12582912.0f;
    const float* q = s.q + g * padded(dim);
    int8_t* rounded = s.rounded + g * padded(dim);
    const Vec inverse = splat(s.inverse[g * W + lane]);
    Vec rest = {}, sum = {};
    for (int64_t c = 0; c < dim; c += W) {
        const Vec shifted = load(q + c) * load(s.step + c) * inverse + round;
        store_bytes(rounded + c, shifted);
        rest += load(q + c) * load(s.middle + c);
        sum += shifted - round;
    }
    return rest - kMeanCode * s.factor[g * W + lane] * sum;
}

// Products of VECTORS times W keys with HEADS heads; load(v, w) gives word w of the keys of vector v.
template <int HEADS, int VECTORS, class Load>
SCOUT_INLINE void code_dots(Load load, const int8_t* rounded, int64_t dim, IntVec sums[HEADS][VECTORS]) {
    for (int i = 0; i < HEADS * VECTORS; ++i) sums[i / VECTORS][i % VECTORS] = IntVec{};
    for (int64_t w = 0; w < code_words(dim); ++w) {
        Bits words[VECTORS];
        for (int v = 0; v < VECTORS; ++v) words[v] = load(v, w);
        for (int j = 0; j < 4; ++j)
            for (int g = 0; g < HEADS; ++g) {
                int32_t four;
                __builtin_memcpy(&four, rounded + g * padded(dim) + 16 * w + 4 * j, sizeof four);
                for (int v = 0; v < VECTORS; ++v)
                    sums[g][v] = dot4(sums[g][v], words[v] >> (2 * j) & 0x03030303u, IntVec{} + four);
            }
    }
}

// The first n words of p, W at most, followed by zeros.
SCOUT_INLINE Bits load_words(const uint8_t* p, int64_t n) {
    if (n >= W) return load_bits(p);
    uint32_t words[W] = {};
    __builtin_memcpy(words, p, n * sizeof(uint32_t));
    return load_bits(words);
}

// Scores of a page's keys for all heads, as number `lane` of the W; -inf where the last vector has no key.
SCOUT_INLINE void score_page(const CodeRun& run, const CodeScratch& s, int32_t page, int64_t lane) {
    const int64_t dim = run.dim, word = 4 * run.positions;
    const uint8_t* codes = run.codes + page * run.codes_page;
    widen(page_bounds(run, page), dim, s.middle);
    widen(page_bounds(run, page) + dim, dim, s.step);
    for (int64_t c = 0; c < dim; c += W) store(s.middle + c, load(s.middle + c) + kMeanCode * load(s.step + c));
    for (int64_t g = 0; g < run.heads; ++g) store(s.lanes + (g * W + lane) * W, round_products(s, g, lane, dim));
    for_head_tiles(run.heads, [&](int64_t g, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        const int8_t* rounded = s.rounded + g * padded(dim);
        const auto score_keys = [&](int64_t first, auto vectors, auto load) {
            constexpr int VECTORS = decltype(vectors)::value;
            IntVec sums[HEADS][VECTORS];
            code_dots<HEADS, VECTORS>(load, rounded, dim, sums);
            for (int i = 0; i < HEADS * VECTORS; ++i) {
                const int64_t row = (g + i / VECTORS) * W + lane, key = first + i % VECTORS * W;
                const Vec scores = __builtin_convertvector(sums[i / VECTORS][i % VECTORS], Vec) * s.factor[row];
                const int64_t keys = run.positions - key;
                store(s.scores + row * s.row + key, keys < W ? first_lanes(scores, keys) : scores);
            }
        };
        int64_t first = 0;
        for (; first + 2 * W <= run.positions; first += 2 * W)
            score_keys(first, Int<2>(), [&](int v, int64_t w) {
                return load_bits(codes + w * word + 4 * (first + v * W));
            });
        for (; first < run.positions; first += W)
            score_keys(first, Int<1>(), [&](int, int64_t w) {
                return load_words(codes + w * word + 4 * first, run.positions - first);
            });
    });
}

// Log-sum-exp of the scores of W pages for head g.
SCOUT_INLINE Vec join_scores(const CodeScratch& s, int64_t g) {
    const float* scores = s.scores + g * W * s.row;
    float* lanes = s.lanes + g * W * W;
    const Vec rest = fold_rows<Sum>(lanes);
    for (int i = 0; i < W; ++i) {
        Vec most = load(scores + i * s.row);
        for (int64_t p = W; p < s.row; p += W) most = larger(most, load(scores + i * s.row + p));
        store(lanes + i * W, most);
    }
    const Vec most = fold_rows<Largest>(lanes);
    for (int i = 0; i < W; ++i) {
        Vec sum = {};
        for (int64_t p = 0; p < s.row; p += W) sum += exp_negative(load(scores + i * s.row + p) - most[i]);
        store(lanes + i * W, sum);
    }
    return rest + most + log_at_least_one(fold_rows<Sum>(lanes));
}

// Asks for the memory of a page that will be read soon.
SCOUT_INLINE void prefetch_page(const CodeRun& run, int32_t page) {
    const char* codes = reinterpret_cast<const char*>(run.codes + page * run.codes_page);
    const char* bounds = reinterpret_cast<const char*>(page_bounds(run, page));
    for (int64_t at = 0; at < 4 * code_words(run.dim) * run.positions; at += kLine) __builtin_prefetch(codes + at);
    for (int64_t at = 0; at < 4 * run.dim; at += kLine) __builtin_prefetch(bounds + at);
}

void code_scores(const CodeRun& run) {
    const CodeScratch s(run);
    for (int64_t i = 0; i < W && i < run.count; ++i) prefetch_page(run, run.pages[i]);
    for (int64_t first = 0; first < run.count; first += W) {
        const int64_t n = run.count - first < W ? run.count - first : W;
        find_factors(run, s, run.pages + first, n);
        for (int64_t i = 0; i < n; ++i) {
            if (first + i + W < run.count) prefetch_page(run, run.pages[first + i + W]);
            score_page(run, s, run.pages[first + i], i);
        }
        for (int64_t g = 0; g < run.heads; ++g) {
            const Vec scores = join_scores(s, g);
            __builtin_memcpy(run.out + g * run.out_stride + first, &scores, n * sizeof(float));
        }
    }
}

}  // namespace
