// Products of a few rows with a matrix: each weight is read from memory once, however many rows there are.
//
// `dots` gives a tile of rows their products with W outputs' weights at a time, so the weights stream through the cache
// while the rows, packed once, stay in it.
#pragma once

#include "partial_body.h"

namespace {

// The rows in the packed order of T, each followed by zeros as far as a whole pair of vectors.
template <class T>
void pack_rows(const float* rows, int64_t count, int64_t width, float* packed) {
    for (int64_t r = 0; r < count; ++r) {
        const float* row = rows + r * width;
        float* to = packed + r * padded(width);
        for_pairs<float>(width, [&](int64_t c, auto load_pair) {
            const Pair x = load_pair(row);
            store(to + c, Row<T>::interleaved ? every_other<0>(x, AllLanes()) : x.even);
            store(to + c + W, Row<T>::interleaved ? every_other<1>(x, AllLanes()) : x.odd);
        });
    }
}

constexpr int64_t kAhead = 8;  // lines of the matrix that are asked for before they are read

template <class T>
void linear(const LinearRun& run) {
    const int64_t width = run.width;
    const T* weight = (const T*)run.weight;
    for (int64_t first = 0; first < run.count; first += W) {
        const int64_t n = run.count - first < W ? run.count - first : W;
        const T* lines[W];
        for (int i = 0; i < W; ++i) lines[i] = weight + (first + (i < n ? i : n - 1)) * width;
        for_head_tiles(run.rows, [&](int64_t r, auto tile) {
            constexpr int ROWS = decltype(tile)::value;
            float products[ROWS * kChunk];
            dots<T, ROWS>(lines, run.x + r * padded(width), width, r ? 0 : kAhead * width, products);
            for (int i = 0; i < ROWS; ++i)
                __builtin_memcpy(run.out + (r + i) * run.out_stride + first, products + i * kChunk, n * sizeof(float));
        });
    }
}

}  // namespace
