// Attention over pages whose keys and values are kept in 4 or 8 bits: channel d of a token is about
// least[d] + code * step[d], with bounds of each page's own.
//
// A word has 32 / BITS codes, number 4 j + i in bits BITS * j of its byte i. A key's words go along its channels,
// [words, P, 4], a value's along the page's tokens, [words, D, 4], so that attention is twice the same product:
//
//     q . key = q . least + sum(q * step * code) over channels, a key in each lane;
//     sum(p * value) = least * sum(p) + step * sum(p * code) over tokens, a channel in each lane.
//
// The factors q * step, scaled for each page and head, and the weights p are rounded to 16-bit integers, of which the
// high and the low byte are multiplied apart, so that all sums are of integers.
#pragma once

#include "bodies/codes.h"

namespace {

// The j-th code of each byte of a word.
template <int BITS>
SCOUT_INLINE Bits codes_of(Bits word, int j) {
    return word >> uint32_t(BITS * j) & ((1u << BITS) - 1) * 0x01010101u;
}

// Codes to be multiplied: [words, lanes, 4], words `stride` bytes apart; the codes `ahead`
// bytes further on are prefetched.
struct Codes {
    const uint8_t* data;
    int64_t words, lanes, stride, ahead;
};

// Factors are kept in groups: [groups, G, kParts, kGroup], bytes. The first part counts kHigh times the second.
constexpr int64_t kGroup = 32;
constexpr int kParts = 2, kHigh = 256;
constexpr float kMost = 127 * kHigh;  // the largest factor

// The memory of a task.
struct PackedScratch {
    float *q, *out, *mean_key, *added;          // [G, padded D]; added: products with a page's rows
    float *k_bounds, *v_bounds;                 // [2, padded D]: a page's least values and steps
    float *scores;                              // [G, padded P]
    float *maximum, *sum, *shrink;              // [G]
    float *factor, *rest, *total;               // [G], of a page: the scale of its products, the part that its scores
                                                // share, and the sum of its weights
    int8_t *products, *weights;                 // factors of D channels, and of P tokens
    uint8_t *keys_by_token;                     // [padded P / 4, padded D, 4]: a page of keys laid out as values are

    PackedScratch(const PartialRun& run) {
        const int64_t heads = run.heads, D = padded(run.dim), P = padded(run.positions);
        __builtin_memset(run.scratch, 0, packed_scratch_floats(heads, run.dim, run.positions) * sizeof(float));
        q = run.scratch, out = q + heads * D, mean_key = out + heads * D;
        added = mean_key + heads * D, k_bounds = added + heads * D, v_bounds = k_bounds + 2 * D;
        scores = v_bounds + 2 * D;
        maximum = scores + heads * P, sum = maximum + heads, shrink = sum + heads;
        factor = shrink + heads, rest = factor + heads, total = rest + heads;
        products = reinterpret_cast<int8_t*>(total + heads), weights = products + heads * kParts * D;
        keys_by_token = reinterpret_cast<uint8_t*>(weights + heads * kParts * P);
        for (int64_t g = 0; g < heads; ++g) {
            maximum[g] = -kInfinity;
            for (int64_t d = 0; d < run.dim; ++d) q[g * D + d] = run.q[g * run.dim + d] * run.scale;
        }
    }
};

// Writes W factors of head g, from number `first` on, to which kRound was added.
SCOUT_INLINE void store_factors(int8_t* factors, int64_t heads, int64_t g, int64_t first, Vec shifted) {
    int8_t* to = factors + (first / kGroup * heads + g) * kParts * kGroup + first % kGroup;
    store_bytes(to, Vec((IntVec(shifted) + kHigh / 2) >> 8));
    store_bytes(to + kGroup, shifted);
}

// Sums of products of VECTORS times W lanes, from lane `first` on, with the factors of HEADS of `heads`, as rows of
// out, `row` apart. Not WHOLE, the last vector has fewer lanes. Inlined, it would lack registers.
template <int BITS, int HEADS, int VECTORS, bool WHOLE>
__attribute__((noinline)) void multiply_tile(const Codes& codes, int64_t first, const int8_t* factors, int64_t heads,
                                             float* out, int64_t row) {
    constexpr int64_t block = kGroup * BITS / 32;  // words
    const int64_t words = codes.words, stride = codes.stride, ahead = codes.ahead, lanes = codes.lanes - first;
    IntVec sums[HEADS * kParts][VECTORS];
    for (int i = 0; i < HEADS * kParts * VECTORS; ++i) sums[i / VECTORS][i % VECTORS] = IntVec{};
    const uint8_t* at = codes.data + 4 * first;
    for (int64_t begin = 0; begin < words; begin += block, factors += heads * kParts * kGroup) {
        const int8_t* fours = factors;
        for (int64_t n = begin + block < words ? block : words - begin; n > 0; --n, at += stride, fours += 32 / BITS) {
            Bits word[VECTORS];
            for (int v = 0; v < VECTORS; ++v) {
                word[v] = WHOLE ? load_bits(at + 4 * W * v) : load_words(at + 4 * W * v, lanes - W * v);
                __builtin_prefetch(at + 4 * W * v + ahead);
            }
            for (int j = 0; j < 8 / BITS; ++j)
                for (int i = 0; i < HEADS * kParts; ++i) {
                    int32_t four;
                    __builtin_memcpy(&four, fours + i * kGroup + 4 * j, sizeof four);
                    for (int v = 0; v < VECTORS; ++v)
                        sums[i][v] = dot_codes<BITS>(sums[i][v], codes_of<BITS>(word[v], j), IntVec{} + four);
                }
        }
    }
    for (int i = 0; i < HEADS * VECTORS; ++i) {
        const int h = i / VECTORS, v = i % VECTORS;
        const Vec high = __builtin_convertvector(sums[h * kParts][v], Vec);
        store(out + h * row + v * W, high * float(kHigh) + __builtin_convertvector(sums[h * kParts + 1][v], Vec));
    }
}

// Sums of products of all lanes with the factors of all heads: out [G, lanes], rows `row` apart.
template <int BITS>
SCOUT_INLINE void multiply(Codes codes, const int8_t* factors, int64_t heads, float* out, int64_t row) {
    for_head_tiles(heads, [=](int64_t g, auto tile) mutable {
        constexpr int HEADS = decltype(tile)::value;
        const int8_t* own = factors + g * kParts * kGroup;
        float* to = out + g * row;
        if (g) codes.ahead = 0;
        int64_t first = 0;
        for (; first + 2 * W <= codes.lanes; first += 2 * W)
            multiply_tile<BITS, HEADS, 2, true>(codes, first, own, heads, to + first, row);
        for (; first + W <= codes.lanes; first += W)
            multiply_tile<BITS, HEADS, 1, true>(codes, first, own, heads, to + first, row);
        if (first < codes.lanes) multiply_tile<BITS, HEADS, 1, false>(codes, first, own, heads, to + first, row);
    });
}

// Head g's products with a page's steps, as factors, and with its least values.
SCOUT_INLINE void round_products(const PackedScratch& s, int64_t heads, int64_t g, int64_t dim) {
    const int64_t D = padded(dim);
    const float *q = s.q + g * D, *least = s.k_bounds, *step = s.k_bounds + D;
    Vec most = {}, rest = {};
    for (int64_t c = 0; c < dim; c += W) {
        const Vec product = load(q + c) * load(step + c);
        most = larger(most, larger(product, -product));
        rest += load(q + c) * load(least + c);
    }
    const float largest = max_lane(most), inverse = largest > 1e-30f ? kMost / largest : 0;
    for (int64_t c = 0; c < dim; c += W)
        store_factors(s.products, heads, g, c, load(q + c) * load(step + c) * inverse + kRound);
    s.factor[g] = largest / kMost, s.rest[g] = sum_lanes(rest);
}

// Makes weights of head g's scores of n tokens, as factors: kMost for the largest score so far.
SCOUT_INLINE void weigh(const PackedScratch& s, int64_t heads, int64_t g, int64_t n, int64_t positions) {
    float* scores = s.scores + g * padded(positions);
    const float factor = s.factor[g], rest = s.rest[g], old = s.maximum[g];
    Vec most = splat(-kInfinity), total = {};
    for (int64_t p = 0; p < n; p += W) {
        const Vec x = first_lanes(load(scores + p) * factor + rest, n - p);
        store(scores + p, x);
        most = larger(x, most);
    }
    const float high = max_lane(most), maximum = high > old ? high : old;
    for (int64_t p = 0; p < positions; p += W) {
        const Vec x = p < n ? exp_negative(load(scores + p) - maximum) : Vec{};
        total += x;
        store_factors(s.weights, heads, g, p, x * kMost + kRound);
    }
    s.maximum[g] = maximum, s.shrink[g] = high > old ? exp_negative(splat(old - maximum))[0] : 1;
    s.total[g] = sum_lanes(total), s.sum[g] = s.sum[g] * s.shrink[g] + s.total[g];
}

// Scales all heads' sums down, and adds a page's rows times their weights.
template <int BITS>
SCOUT_INLINE void add_rows(const PartialRun& run, const PackedScratch& s, const Codes& codes, const float* least,
                           float* sums) {
    const int64_t dim = run.dim, D = padded(dim);
    const float* step = least + D;
    multiply<BITS>(codes, s.weights, run.heads, s.added, D);
    for (int64_t g = 0; g < run.heads; ++g) {
        const float total = s.total[g], shrink = s.shrink[g];
        const float* added = s.added + g * D;
        float* sum = sums + g * D;
        for (int64_t c = 0; c < dim; c += W)
            store(sum + c, load(sum + c) * shrink + load(least + c) * total +
                               load(step + c) * (load(added + c) * (1 / kMost)));
    }
}

typedef uint8_t Bytes __attribute__((vector_size(4 * W)));
typedef CountTo<4 * W>::type AllBytes;
typedef uint32_t FourWords __attribute__((vector_size(16)));

// Byte i of word k of every four words becomes byte k of word i: four tokens' channels to four channels' tokens.
template <int... I>
SCOUT_INLINE Bits swap_in_fours(Bits x, Lanes<I...>) {
    return Bits(__builtin_shufflevector(Bytes(x), Bytes(x), (I / 16 * 16 + I % 4 * 4 + I / 4 % 4)...));
}

// Writes every four words of x to rows of their own.
template <int FIRST = 0>
SCOUT_INLINE void store_fours(uint8_t* to, int64_t row, Bits x) {
    const FourWords four = __builtin_shufflevector(x, x, FIRST, FIRST + 1, FIRST + 2, FIRST + 3);
    __builtin_memcpy(to, &four, sizeof four);
    if constexpr (FIRST + 4 < W) store_fours<FIRST + 4>(to + row, row, x);
}

// A page's keys with four tokens in a word, a code a byte.
template <int BITS>
SCOUT_INLINE Codes by_token(const PartialRun& run, const PackedScratch& s, const Codes& keys) {
    const int64_t row = 4 * padded(run.dim);
    for (int64_t p = 0; p < run.positions; p += W)
        for (int64_t w = 0; w < keys.words; ++w) {
            const Bits word = load_words(keys.data + w * keys.stride + 4 * p, run.positions - p);
            for (int j = 0; j < 8 / BITS; ++j)
                store_fours(s.keys_by_token + p / 4 * row + 4 * (32 / BITS * w + 4 * j), row,
                            swap_in_fours(codes_of<BITS>(word, j), AllBytes()));
        }
    return {s.keys_by_token, (run.positions + 3) / 4, padded(run.dim), row, 0};
}

SCOUT_INLINE void widen_bounds(const uint16_t* bounds, int64_t dim, float* out) {
    const auto* row = reinterpret_cast<const BFloat16*>(bounds);
    widen(row, dim, out);
    widen(row + dim, dim, out + padded(dim));
}

// Attends to the listed tokens of one page. The next page is `ahead` pages further on.
template <int BITS>
SCOUT_INLINE void attend_page(const PartialRun& run, const PackedScratch& s, ListedBlock listed, int64_t ahead) {
    const int64_t dim = run.dim, positions = run.positions, P = padded(positions), page = listed.page;
    const uint16_t* k_bounds = run.k_bounds + page * run.k_bounds_page;
    const uint16_t* v_bounds = run.v_bounds + page * run.v_bounds_page;
    const Codes k{(const uint8_t*)run.k + page * run.k_page, packed_words(dim, BITS), positions, 4 * positions,
                  ahead * run.k_page};
    const Codes v{(const uint8_t*)run.v + page * run.v_page, packed_words(positions, BITS), dim, 4 * dim,
                  ahead * run.v_page};
    for (int64_t at = 0; at < 2 * dim; at += kLine / 2) {
        __builtin_prefetch(k_bounds + ahead * run.k_bounds_page + at);
        __builtin_prefetch(v_bounds + ahead * run.v_bounds_page + at);
    }
    widen_bounds(k_bounds, dim, s.k_bounds);
    widen_bounds(v_bounds, dim, s.v_bounds);
    for (int64_t g = 0; g < run.heads; ++g) round_products(s, run.heads, g, dim);
    multiply<BITS>(k, s.products, run.heads, s.scores, P);
    for (int64_t g = 0; g < run.heads; ++g) weigh(s, run.heads, g, listed.length, positions);
    add_rows<BITS>(run, s, v, s.v_bounds, s.out);
    if (run.mean_key) add_rows<8>(run, s, by_token<BITS>(run, s, k), s.k_bounds, s.mean_key);
}

template <int BITS>
void packed_partial(const PartialRun& run) {
    const PackedScratch s(run);
    for (int64_t e = 0; e < run.count; ++e) {
        const ListedBlock listed = run.blocks[e];
        attend_page<BITS>(run, s, listed, e + 1 < run.count ? run.blocks[e + 1].page - int64_t(listed.page) : 0);
    }
    for (int64_t g = 0; g < run.heads; ++g) {
        const float inverse = 1 / s.sum[g];
        const int64_t from = g * padded(run.dim), to = g * run.dim;
        for (int64_t d = 0; d < run.dim; ++d) run.out[to + d] = s.out[from + d] * inverse;
        for (int64_t d = 0; run.mean_key && d < run.dim; ++d) run.mean_key[to + d] = s.mean_key[from + d] * inverse;
        run.lse[g] = s.maximum[g] + __builtin_logf(s.sum[g]);
    }
}

}  // namespace
