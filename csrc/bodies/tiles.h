// Dot products of query heads with rows. Heads are taken in tiles, which share each loaded row; channels in pairs of
// vectors.
#pragma once

#include "bodies/channels.h"

namespace {

using namespace scout;

constexpr int kHeads = 4;  // heads that share a row: with four rows at a time their sums fill half of the registers
constexpr int kLine = 64;  // bytes of a cache line

template <int N>
struct Int {
    static constexpr int value = N;
};

// Calls body(Int<heads>) for 1 to MOST heads.
template <int MOST = kHeads, class Body>
SCOUT_INLINE void with_head_count(int64_t heads, Body body) {
    if (heads == MOST) return body(Int<MOST>());
    if constexpr (MOST > 1) with_head_count<MOST - 1>(heads, body);
}

// Calls body(first head, Int<number of heads>) for tiles of at most MOST heads.
template <int MOST = kHeads, class Body>
SCOUT_INLINE void for_head_tiles(int64_t heads, Body body) {
    for (int64_t g = 0; g < heads; g += MOST)
        with_head_count<MOST>(heads - g < MOST ? heads - g : MOST, [&](auto tile) { body(g, tile); });
}

// Calls body(first packed position, load) for the pairs of a row; load(row) gives that pair of a row.
template <class T, class Body>
SCOUT_INLINE void for_pairs(int64_t dim, Body body) {
    int64_t c = 0;
    for (; c + 2 * W <= dim; c += 2 * W) body(c, [c](const T* row) { return Loader<T>::load(row + c); });
    if (c < dim) body(c, [c, dim](const T* row) { return load_tail(row + c, dim - c); });
}

// Prefetches the pair at `at`, `position` channels into its row, once per cache line.
template <class T>
SCOUT_INLINE void prefetch(const T* at, int64_t position) {
    constexpr int64_t bytes = 2 * W * sizeof(T);
    if (bytes < kLine && position * int64_t(sizeof(T)) % kLine != 0) return;
    for (int64_t offset = 0; offset < bytes; offset += kLine) __builtin_prefetch((const char*)at + offset);
}

// Scores of W rows for HEADS heads: scores[g * W + i] = q[g] . rows[i].
// Meanwhile prefetches the rows `next`, which will be read later.
template <class T, int HEADS>
SCOUT_INLINE void dots(const T* const rows[W], const T* const next[W], const float* q, int64_t dim, float* scores) {
    Vec quads[HEADS][W / 4];
    for (int r = 0; r < W; r += 4) {
        Vec sum[HEADS][4];
        for (int g = 0; g < HEADS; ++g)
            for (int i = 0; i < 4; ++i) sum[g][i] = Vec{};
        for_pairs<T>(dim, [&](int64_t c, auto load_pair) {
            Vec even[HEADS], odd[HEADS];
            for (int g = 0; g < HEADS; ++g) {
                even[g] = load(q + c * HEADS + 2 * W * g);
                odd[g] = load(q + c * HEADS + 2 * W * g + W);
            }
            for (int i = 0; i < 4; ++i) {
                prefetch(next[r + i] + c, c);
                const Pair x = load_pair(rows[r + i]);
                for (int g = 0; g < HEADS; ++g) {
                    sum[g][i] += even[g] * x.even;
                    sum[g][i] += odd[g] * x.odd;
                }
            }
        });
        for (int g = 0; g < HEADS; ++g) quads[g][r / 4] = fold4(sum[g]);
    }
    for (int g = 0; g < HEADS; ++g) store(scores + g * W, fold_quads(quads[g]));
}

// out[g * stride + i] = q[g] . rows[i] for all packed heads and the first n rows. The first tile prefetches `next`; the
// other tiles need not.
template <class T>
SCOUT_INLINE void row_products(const T* const rows[W], const T* const next[W], int64_t n, const float* q, int64_t heads,
                               int64_t dim, float* out, int64_t stride) {
    for_head_tiles(heads, [&](int64_t g, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        float products[HEADS * W];
        dots<T, HEADS>(rows, g ? rows : next, q + g * padded(dim), dim, products);
        for (int h = 0; h < HEADS; ++h)
            __builtin_memcpy(out + (g + h) * stride, products + h * W, n * sizeof(float));
    });
}

// The rows in the packed order of T, times `scale`, for `dots`: tiles of heads one after the other, in a tile a pair of
// vectors of each head, then the next pairs. Channels beyond the width are zero.
template <class T>
SCOUT_INLINE void pack(const float* rows, int64_t count, int64_t width, float scale, float* packed) {
    for_head_tiles(count, [&](int64_t first, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        for (int g = 0; g < HEADS; ++g) {
            const float* row = rows + (first + g) * width;
            for_pairs<float>(width, [&](int64_t c, auto load_pair) {
                const Pair x = load_pair(row);
                float* to = packed + first * padded(width) + c * HEADS + 2 * W * g;
                store(to, scale * (Loader<T>::interleaved ? every_other<0>(x, AllLanes()) : x.even));
                store(to + W, scale * (Loader<T>::interleaved ? every_other<1>(x, AllLanes()) : x.odd));
            });
        }
    });
}

// A packed row times `scale`, in the order of its channels.
template <class T>
SCOUT_INLINE void unpack(const float* packed, int64_t width, float scale, float* row) {
    for (int64_t c = 0; c < width; c += 2 * W) {
        Pair x = {scale * load(packed + c), scale * load(packed + c + W)};
        if constexpr (Loader<T>::interleaved) x = merged(x, AllLanes());
        __builtin_memcpy(row + c, &x, (width - c < 2 * W ? width - c : 2 * W) * sizeof(float));
    }
}

}  // namespace
