// Attention over listed pages, and digest scores: the idea, once; isa_*.cpp compile it for each instruction set.
//
// A chunk of keys goes through three steps: scores of all keys (`dots`), their exponentials under a running maximum
// (`softmax`), and the weighted sum of the values (`accumulate`). All G heads share the chunk while it is in cache,
// so that memory is read once. Channels are kept in the packed order of `channel` until the end.
#pragma once

#include "vector.h"

namespace {

using namespace scout;

constexpr int kChunk = 64;  // keys of a chunk
constexpr int kHeads = 4;   // heads that share a widened row; more would not fit in registers
constexpr int kLine = 64;   // bytes of a cache line

template <int N>
struct Int {
    static constexpr int value = N;
};

// Calls body(first head, Int<number of heads>) for tiles of at most kHeads heads.
template <class Body>
SCOUT_INLINE void for_head_tiles(int64_t heads, Body body) {
    int64_t g = 0;
    for (; g + kHeads <= heads; g += kHeads) body(g, Int<kHeads>());
    if (heads - g == 3) body(g, Int<3>());
    if (heads - g == 2) body(g, Int<2>());
    if (heads - g == 1) body(g, Int<1>());
}

// Calls body(first packed position, load) for the pairs of a row; load(row) gives that pair of a row.
template <class T, class Body>
SCOUT_INLINE void for_pairs(int64_t dim, Body body) {
    int64_t c = 0;
    for (; c + 2 * W <= dim; c += 2 * W) body(c, [c](const T* row) { return Row<T>::load(row + c); });
    if (c < dim) body(c, [c, dim](const T* row) { return load_tail(row + c, dim - c); });
}

// Asks for the memory of the pair at `at`, `position` channels into its row, once per cache line.
template <class T>
SCOUT_INLINE void prefetch(const T* at, int64_t position) {
    constexpr int64_t bytes = 2 * W * sizeof(T);
    if (bytes < kLine && position * int64_t(sizeof(T)) % kLine != 0) return;
    for (int64_t offset = 0; offset < bytes; offset += kLine) __builtin_prefetch((const char*)at + offset);
}

// Scores of W rows for HEADS heads: scores[g * kChunk + i] = q[g] . rows[i].
// Meanwhile asks for the rows `ahead` elements further on, which will be read next.
template <class T, int HEADS>
SCOUT_INLINE void dots(const T* const rows[W], const float* q, int64_t dim, int64_t ahead, float* scores) {
    Vec quads[HEADS][W / 4];
    for (int r = 0; r < W; r += 4) {
        Vec sum[HEADS][4];
        for (int g = 0; g < HEADS; ++g)
            for (int i = 0; i < 4; ++i) sum[g][i] = Vec{};
        for_pairs<T>(dim, [&](int64_t c, auto load_pair) {
            Vec even[HEADS], odd[HEADS];
            for (int g = 0; g < HEADS; ++g) {
                even[g] = load(q + g * padded(dim) + c);
                odd[g] = load(q + g * padded(dim) + c + W);
            }
            for (int i = 0; i < 4; ++i) {
                prefetch(rows[r + i] + ahead + c, c);
                Pair x = load_pair(rows[r + i]);
                for (int g = 0; g < HEADS; ++g) {
                    sum[g][i] += even[g] * x.even;
                    sum[g][i] += odd[g] * x.odd;
                }
            }
        });
        for (int g = 0; g < HEADS; ++g) quads[g][r / 4] = fold4(sum[g]);
    }
    for (int g = 0; g < HEADS; ++g) store(scores + g * kChunk, fold_quads(quads[g]));
}

// Turns n scores into exp(score - maximum), padded with zeros to whole vectors. Returns what older sums shrink by.
SCOUT_INLINE float softmax(float* scores, int64_t n, float& maximum, float& sum) {
    Vec most = splat(-kInfinity), total = {};
    for (int64_t i = 0; i < n; i += W) {
        Vec x = first_lanes(load(scores + i), n - i);
        store(scores + i, x);
        most = larger(x, most);
    }
    float old = maximum, high = max_lane(most);
    maximum = high > old ? high : old;
    for (int64_t i = 0; i < n; i += W) {
        Vec x = exp_negative(load(scores + i) - maximum);
        store(scores + i, x);
        total += x;
    }
    float shrink = exp_negative(splat(old - maximum))[0];
    sum = sum * shrink + sum_lanes(total);
    return shrink;
}

// sums[g] = sums[g] * shrink[g] + sum over n rows of weights[g][row] * row; `ahead` as above.
template <class T, int HEADS>
SCOUT_INLINE void accumulate(const T* rows, int64_t n, int64_t dim, int64_t ahead, const float* weights,
                             const float* shrink, float* sums) {
    for_pairs<T>(dim, [&](int64_t c, auto load_pair) {
        Vec even[HEADS], odd[HEADS];
        for (int g = 0; g < HEADS; ++g) {
            even[g] = load(sums + g * padded(dim) + c) * shrink[g];
            odd[g] = load(sums + g * padded(dim) + c + W) * shrink[g];
        }
        const T* row = rows;
        for (int64_t i = 0; i < n; ++i, row += dim) {
            prefetch(row + ahead + c, c);
            Pair x = load_pair(row);
            for (int g = 0; g < HEADS; ++g) {
                Vec weight = splat(weights[g * kChunk + i]);
                even[g] += weight * x.even;
                odd[g] += weight * x.odd;
            }
        }
        for (int g = 0; g < HEADS; ++g) {
            store(sums + g * padded(dim) + c, even[g]);
            store(sums + g * padded(dim) + c + W, odd[g]);
        }
    });
}

template <class T>
void pack(const float* rows, int64_t heads, int64_t dim, float scale, float* packed) {
    for (int64_t g = 0; g < heads; ++g)
        for (int64_t i = 0; i < padded(dim); ++i)
            packed[g * padded(dim) + i] = channel<T>(i) < dim ? rows[g * dim + channel<T>(i)] * scale : 0;
}

template <class T>
void unpack(const float* packed, int64_t dim, float scale, float* row) {
    for (int64_t i = 0; i < padded(dim); ++i)
        if (channel<T>(i) < dim) row[channel<T>(i)] = packed[i] * scale;
}

// The running sums of a task, in its scratch memory.
struct Sums {
    float *q, *out, *mean_key;             // [G, padded D], packed
    float *maximum, *sum, *shrink;         // [G]

    Sums(float* scratch, int64_t heads, int64_t dim) {
        int64_t size = heads * padded(dim);
        q = scratch, out = q + size, mean_key = out + size;
        maximum = mean_key + size, sum = maximum + heads, shrink = sum + heads;
        __builtin_memset(out, 0, (2 * size + 3 * heads) * sizeof(float));
        for (int64_t g = 0; g < heads; ++g) maximum[g] = -kInfinity;
    }
};

// One chunk of one page: n keys and values, seen by every head. The chunk to come lies `k_ahead` and `v_ahead`
// elements further on; the first tile of heads asks for it, the others find this one in cache.
template <class T>
SCOUT_INLINE void attend_chunk(const PartialRun& run, const Sums& sums, const T* k, const T* v, int64_t n,
                               int64_t k_ahead, int64_t v_ahead) {
    const int64_t dim = run.dim;
    alignas(64) float scores[kHeads * kChunk];
    for_head_tiles(run.heads, [&](int64_t g, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        for (int64_t first = 0; first < n; first += W) {
            const T* rows[W];
            for (int i = 0; i < W; ++i) rows[i] = k + (first + i < n ? first + i : n - 1) * dim;
            dots<T, HEADS>(rows, sums.q + g * padded(dim), dim, g ? 0 : k_ahead, scores + first);
        }
        for (int h = 0; h < HEADS; ++h)
            sums.shrink[g + h] = softmax(scores + h * kChunk, n, sums.maximum[g + h], sums.sum[g + h]);
        const float* shrink = sums.shrink + g;
        accumulate<T, HEADS>(v, n, dim, g ? 0 : v_ahead, scores, shrink, sums.out + g * padded(dim));
        if (run.mean_key) accumulate<T, HEADS>(k, n, dim, 0, scores, shrink, sums.mean_key + g * padded(dim));
    });
}

template <class T>
void partial(const PartialRun& run) {
    const int64_t heads = run.heads, dim = run.dim;
    Sums sums(run.scratch, heads, dim);
    pack<T>(run.q, heads, dim, run.scale, sums.q);
    for (int64_t e = 0; e < run.count; ++e) {
        const Entry entry = run.entries[e];
        const int64_t ahead = (e + 1 < run.count ? run.entries[e + 1].page : entry.page) - int64_t(entry.page);
        for (int64_t first = 0; first < entry.length; first += kChunk) {
            int64_t n = entry.length - first < kChunk ? entry.length - first : kChunk;
            attend_chunk<T>(run, sums, (const T*)run.k + entry.page * run.k_page + first * dim,
                            (const T*)run.v + entry.page * run.v_page + first * dim, n, ahead * run.k_page,
                            ahead * run.v_page);
        }
    }
    for (int64_t g = 0; g < heads; ++g) {
        float inverse = 1 / sums.sum[g];
        unpack<T>(sums.out + g * padded(dim), dim, inverse, run.out + g * dim);
        if (run.mean_key) unpack<T>(sums.mean_key + g * padded(dim), dim, inverse, run.mean_key + g * dim);
        run.lse[g] = sums.maximum[g] + __builtin_logf(sums.sum[g]);
    }
}

void scores(const ScoreRun& run) {
    const int64_t width = run.width;
    pack<float>(run.bounds, run.heads, width, 1, run.scratch);
    for (int64_t first = 0; first < run.count; first += W) {
        const int64_t n = run.count - first < W ? run.count - first : W;
        const float* rows[W];
        for (int i = 0; i < W; ++i) rows[i] = run.digests + run.pages[first + (i < n ? i : n - 1)] * run.page_stride;
        for_head_tiles(run.heads, [&](int64_t g, auto tile) {
            constexpr int HEADS = decltype(tile)::value;
            float products[HEADS * kChunk];
            dots<float, HEADS>(rows, run.scratch + g * padded(width), width, 0, products);
            for (int h = 0; h < HEADS; ++h)
                __builtin_memcpy(run.out + (g + h) * run.out_stride + first, products + h * kChunk, n * sizeof(float));
        });
    }
}

}  // namespace
