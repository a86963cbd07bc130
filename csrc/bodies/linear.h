// Products of a few rows with a matrix: each weight is read from memory once, however many rows there are.
//
// `row_products` multiplies a tile of rows with the weights of W outputs at a time. So the weights stream through the
// cache, while the rows, packed once, stay in it.
#pragma once

#include "bodies/tiles.h"

namespace {

template <class T>
void pack_rows(const float* rows, int64_t count, int64_t width, void* packed) {
    pack<T>(rows, count, width, 1, (float*)packed);
}

constexpr int64_t kLinesAhead = 8;  // lines of the matrix that are prefetched before they are read

template <class T>
void linear(const LinearRun& run) {
    const int64_t width = run.width;
    const T* weight = (const T*)run.weight;
    for (int64_t first = 0; first < run.count; first += W) {
        const int64_t n = run.count - first < W ? run.count - first : W;
        const T *lines[W], *next[W];
        for (int i = 0; i < W; ++i)
            lines[i] = weight + (first + (i < n ? i : n - 1)) * width, next[i] = lines[i] + kLinesAhead * width;
        row_products<T>(lines, next, n, (const float*)run.x, run.rows, width, run.out + first, run.out_stride);
    }
}

}  // namespace
