// What the kernels over rows share: heads in tiles, channels in pairs, and the dot products of both.
#pragma once

#include "channels.h"

namespace {

using namespace scout;

constexpr int kHeads = W == 16 ? 8 : 4;  // heads that share a widened row: half of the registers hold their sums
constexpr int kLine = 64;                // bytes of a cache line

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

// The products of ROWS rows with HEADS heads, spread over lanes. Meanwhile asks for the rows `next`.
template <class T, int HEADS, int ROWS>
SCOUT_INLINE void products(const T* const* rows, const T* const* next, const float* q, int64_t dim,
                           Vec sum[HEADS][ROWS]) {
    for (int g = 0; g < HEADS; ++g)
        for (int i = 0; i < ROWS; ++i) sum[g][i] = Vec{};
    for_pairs<T>(dim, [&](int64_t c, auto load_pair) {
        Pair x[ROWS];
        for (int i = 0; i < ROWS; ++i) {
            prefetch(next[i] + c, c);
            x[i] = load_pair(rows[i]);
        }
        for (int g = 0; g < HEADS; ++g) {
            const Vec even = in_register(load(q + c * HEADS + 2 * W * g));
            const Vec odd = in_register(load(q + c * HEADS + 2 * W * g + W));
            for (int i = 0; i < ROWS; ++i) {
                sum[g][i] += even * x[i].even;
                sum[g][i] += odd * x[i].odd;
            }
        }
    });
}

// Scores of W rows for HEADS heads: scores[g * stride + i] = q[g] . rows[i].
// Meanwhile asks for the rows `next`, which will be read later.
template <class T, int HEADS>
SCOUT_INLINE void dots(const T* const rows[W], const T* const next[W], const float* q, int64_t dim, float* scores,
                       int64_t stride) {
    Vec quads[HEADS][W / 4];
    for (int r = 0; r < W; r += 4) {
        if constexpr (HEADS <= 4) {
            Vec sum[HEADS][4];
            products<T, HEADS, 4>(rows + r, next + r, q, dim, sum);
            for (int g = 0; g < HEADS; ++g) quads[g][r / 4] = fold4(sum[g]);
        } else {
            Vec halves[2][HEADS];
            for (int half = 0; half < 2; ++half) {
                Vec sum[HEADS][2];
                products<T, HEADS, 2>(rows + r + 2 * half, next + r + 2 * half, q, dim, sum);
                for (int g = 0; g < HEADS; ++g) halves[half][g] = fold<Unpack, Sum>(sum[g][0], sum[g][1]);
            }
            for (int g = 0; g < HEADS; ++g) quads[g][r / 4] = fold<Halves, Sum>(halves[0][g], halves[1][g]);
        }
    }
    for (int g = 0; g < HEADS; ++g) store(scores + g * stride, fold_quads(quads[g]));
}

// The rows in the packed order of T, times `scale`, for `dots`: tiles of heads one after the other, in a tile a pair of
// vectors of each head, then the next pairs. What is beyond the width is zero.
template <class T>
SCOUT_INLINE void pack(const float* rows, int64_t count, int64_t width, float scale, float* packed) {
    for_head_tiles(count, [&](int64_t first, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        for (int g = 0; g < HEADS; ++g) {
            const float* row = rows + (first + g) * width;
            for_pairs<float>(width, [&](int64_t c, auto load_pair) {
                const Pair x = load_pair(row);
                float* to = packed + first * padded(width) + c * HEADS + 2 * W * g;
                store(to, scale * (Row<T>::interleaved ? every_other<0>(x, AllLanes()) : x.even));
                store(to + W, scale * (Row<T>::interleaved ? every_other<1>(x, AllLanes()) : x.odd));
            });
        }
    });
}

// A packed row times `scale`, in the order of its channels.
template <class T>
SCOUT_INLINE void unpack(const float* packed, int64_t width, float scale, float* row) {
    for (int64_t c = 0; c < width; c += 2 * W) {
        Pair x = {scale * load(packed + c), scale * load(packed + c + W)};
        if constexpr (Row<T>::interleaved) x = merged(x, AllLanes());
        __builtin_memcpy(row + c, &x, (width - c < 2 * W ? width - c : 2 * W) * sizeof(float));
    }
}

}  // namespace
