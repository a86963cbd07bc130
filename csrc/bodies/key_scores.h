// Products of keys with queries. Keys are transposed, so that each key has a lane of its own and no sum over lanes is
// needed.
#pragma once

#include "bodies/tiles.h"

namespace {

constexpr int kChunk = 32;  // keys of a chunk
// Heads that share a transposed or widened row: their sums fill half of the registers.
constexpr int kHeadsPerTile = W == 16 ? 8 : 4;

// 32-bit words of a row. A word is one channel of float32, or two of the other dtypes.
template <class T>
constexpr int64_t row_words(int64_t dim) {
    return (dim + Loader<T>::per_word - 1) / Loader<T>::per_word;
}

// The queries in the order in which `score_words` takes them: tiles of heads one after the other, in a tile the
// channels of the first word of each head, then of the second.
template <class T>
SCOUT_INLINE void pack_queries(const PartialRun& run, float* packed) {
    constexpr int PER = Loader<T>::per_word;
    for_head_tiles<kHeadsPerTile>(run.heads, [&](int64_t first, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        float* to = packed + first * padded(run.dim);
        for (int64_t c = 0; c < row_words<T>(run.dim) * PER; ++c)
            for (int g = 0; g < HEADS; ++g)
                to[(c / PER * HEADS + g) * PER + c % PER] =
                    c < run.dim ? run.q[(first + g) * run.dim + c] * run.scale : 0;
    });
}

// Prefetches memory that will be read soon, line by line, at the pace at which other memory is read.
struct Prefetcher {
    const char* at;

    // Prefetches the next BYTES, as many as are read of other memory meanwhile.
    template <int BYTES>
    SCOUT_INLINE void prefetch_next() {
        constexpr int lines = BYTES < kLine ? 1 : BYTES / kLine;
        for (int i = 0; i < lines; ++i) __builtin_prefetch(at + i * kLine, 0, 0);
        at += BYTES;
    }
};

// scores[g * kChunk + key] += the products of `count` words of 2 W keys with the queries of HEADS heads.
template <class T, int HEADS>
Prefetcher score_words(const Vec words[][2], int64_t count, const float* q, float* scores, Prefetcher ahead) {
    constexpr int PER = Loader<T>::per_word, SUMS = HEADS <= kHeadsPerTile / 2 ? PER : 1;
    Vec sum[HEADS][2][SUMS];
    for (int g = 0; g < HEADS; ++g)
        for (int v = 0; v < 2; ++v) {
            sum[g][v][0] = load(scores + g * kChunk + v * W);
            if constexpr (SUMS == 2) sum[g][v][1] = Vec{};
        }
    for (int64_t c = 0; c < count; ++c, q += HEADS * PER) {
        ahead.prefetch_next<2 * W * sizeof(float)>();
        Vec x[2][PER];
        for (int v = 0; v < 2; ++v) Loader<T>::widen_words(words[c][v], x[v]);
        for (int g = 0; g < HEADS; ++g)
            for (int i = 0; i < PER; ++i) {
                const Vec each = in_register(splat(q[g * PER + i]));
                for (int v = 0; v < 2; ++v) sum[g][v][i % SUMS] += each * x[v][i];
            }
    }
    for (int g = 0; g < HEADS; ++g)
        for (int v = 0; v < 2; ++v)
            store(scores + g * kChunk + v * W, SUMS == 2 ? sum[g][v][0] + sum[g][v][SUMS - 1] : sum[g][v][0]);
    return ahead;
}

// Calls body(first channel, words, load) for every W words of a row; load(row) gives these words of any row.
template <class T, class Body>
SCOUT_INLINE void for_words(int64_t dim, Body body) {
    constexpr int64_t ALL = W * Loader<T>::per_word;
    int64_t c = 0;
    for (; c + ALL <= dim; c += ALL) body(c, int64_t(W), [c](const T* row) { return load((const float*)(row + c)); });
    if (c < dim) body(c, row_words<T>(dim - c), [c, dim](const T* row) { return load_words(row + c, dim - c); });
}

}  // namespace
