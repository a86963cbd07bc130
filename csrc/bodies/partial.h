// Attention of the query heads of one KV head over listed pages.
//
// A chunk of keys goes through three steps: `score` computes the scores of its keys, `weigh` their exponentials under a
// running maximum, and `add` the weighted sum of its values. All G heads share the chunk while it is in cache, so that
// memory is read once. The values of a chunk are added after the keys of the next chunk are scored: that hides the
// latency of `weigh`. Channels of sums are kept in the packed order of `channel` until the end.
#pragma once

#include "bodies/key_scores.h"

namespace {

constexpr int kChunksAhead = 1;  // chunks that are prefetched before they are read

// n keys and values of one page.
template <class T>
struct Chunk {
    const T *k, *v;
    int64_t n;
};

// A walk over the listed blocks in chunks; after the last one its `now` is empty.
template <class T>
struct Walk {
    const PartialRun& run;
    int64_t block, first;
    Chunk<T> now;

    SCOUT_INLINE Walk(const PartialRun& run) : run(run), block(0), first(0), now() { look(); }

    SCOUT_INLINE void step() {
        first += now.n;
        if (block < run.count && first == run.blocks[block].length) ++block, first = 0;
        look();
    }

    SCOUT_INLINE void look() {
        now.n = 0;
        if (block == run.count) return;
        const ListedBlock& at = run.blocks[block];
        const int64_t rest = at.length - first;
        now = {(const T*)run.k + at.page * run.k_page + first * run.dim,
               (const T*)run.v + at.page * run.v_page + first * run.dim, rest < kChunk ? rest : kChunk};
    }
};

// The running sums of a task, in its scratch memory. Heads have their own rows.
struct Sums {
    float *q, *out, *mean_key;  // [G, padded D], packed
    float* weights[2];          // [G, kChunk] of two chunks: first scores, then their exponentials
    float *sum, *maximum;       // [G, W], [G]

    SCOUT_INLINE Sums(float* scratch, int64_t heads, int64_t dim) {
        const int64_t size = heads * padded(dim);
        q = scratch, out = q + size, mean_key = out + size;
        weights[0] = mean_key + size, weights[1] = weights[0] + heads * kChunk;
        sum = weights[1] + heads * kChunk, maximum = sum + heads * W;
        __builtin_memset(out, 0, 2 * size * sizeof(float));
        __builtin_memset(sum, 0, heads * W * sizeof(float));
        for (int64_t g = 0; g < heads; ++g) maximum[g] = -kInfinity;
    }
};

// The scores of a chunk's keys, which are transposed so that each has a lane. Meanwhile prefetches the keys `ahead`.
template <class T>
SCOUT_INLINE void score(const PartialRun& run, const Sums& sums, Chunk<T> chunk, Prefetcher ahead, float* scores) {
    const int64_t dim = run.dim;
    const T* rows[kChunk];
    for (int i = 0; i < kChunk; ++i) rows[i] = chunk.k + (i < chunk.n ? i : chunk.n - 1) * dim;
    __builtin_memset(scores, 0, run.heads * kChunk * sizeof(float));
    for (int64_t first = 0; first < chunk.n; first += 2 * W)
        for_words<T>(dim, [&](int64_t c, int64_t count, auto load_row) {
            Vec words[W][2];
            for (int v = 0; v < 2; ++v) {
                Vec x[W];
                for (int i = 0; i < W; ++i) x[i] = load_row(rows[first + v * W + i]);
                transpose(x);
                for (int i = 0; i < W; ++i) words[transposed_lane(i)][v] = x[i];
            }
            for_head_tiles<kHeadsPerTile>(run.heads, [&](int64_t g, auto tile) {
                constexpr int HEADS = decltype(tile)::value;
                const Prefetcher after = score_words<T, HEADS>(words, count, sums.q + g * padded(dim) + c * HEADS,
                                                           scores + g * kChunk + first, ahead);
                if (g + kHeadsPerTile >= run.heads) ahead = after;
            });
        });
}

// Makes `high` the maximum of head g, and scales the sums under the old maximum down.
SCOUT_INLINE void raise_maximum(const PartialRun& run, const Sums& sums, int64_t g, float high) {
    const Vec shrink = splat(exp_negative(splat(sums.maximum[g] - high))[0]);
    sums.maximum[g] = high;
    store(sums.sum + g * W, load(sums.sum + g * W) * shrink);
    const int64_t size = padded(run.dim);
    for (int64_t c = g * size; c < (g + 1) * size; c += W) store(sums.out + c, load(sums.out + c) * shrink);
    if (!run.mean_key) return;
    for (int64_t c = g * size; c < (g + 1) * size; c += W) store(sums.mean_key + c, load(sums.mean_key + c) * shrink);
}

// Turns n scores of every head into exp(score - maximum), padded with zeros to whole vectors.
SCOUT_INLINE void weigh(const PartialRun& run, const Sums& sums, int64_t n, float* weights) {
    for (int64_t g = 0; g < run.heads; ++g) {
        float* at = weights + g * kChunk;
        const int64_t rest = n % W;
        if (rest) store(at + n - rest, first_lanes(load(at + n - rest), rest));
        Vec most = load(at);
        for (int64_t i = W; i < n; i += W) most = larger(load(at + i), most);
        if (exceeds(most, sums.maximum[g])) raise_maximum(run, sums, g, max_lane(most));
        Vec total = load(sums.sum + g * W);
        for (int64_t i = 0; i < n; i += W) {
            const Vec x = exp_negative(load(at + i) - sums.maximum[g]);
            store(at + i, x);
            total += x;
        }
        store(sums.sum + g * W, total);
    }
}

// Rows of keys or values from some channel on, and the sums of the first head that they are added to.
template <class T>
struct Source {
    const T* rows;
    float* sums;

    SCOUT_INLINE Source from(int64_t channel) const { return {rows + channel, sums + channel}; }
};

// sums[g] += the sum over n rows of weights[g][row] * row, for 2 W channels of each of COUNT sources. Meanwhile
// prefetches AHEAD times 2 W channels a row.
template <class T, int HEADS, int AHEAD, int COUNT, class Load>
SCOUT_INLINE void add_pairs(const Source<T> (&sources)[COUNT], int64_t n, int64_t dim, const float* weights,
                            Prefetcher& ahead, Load load_pair) {
    Vec even[COUNT][HEADS], odd[COUNT][HEADS];
    for (int s = 0; s < COUNT; ++s)
        for (int g = 0; g < HEADS; ++g) {
            even[s][g] = load(sources[s].sums + g * padded(dim));
            odd[s][g] = load(sources[s].sums + g * padded(dim) + W);
        }
    for (int64_t i = 0; i < n; ++i) {
        if constexpr (AHEAD > 0) ahead.prefetch_next<AHEAD * 2 * W * sizeof(T)>();
        Pair x[COUNT];
        for (int s = 0; s < COUNT; ++s) x[s] = load_pair(sources[s].rows + i * dim);
        for (int g = 0; g < HEADS; ++g) {
            const Vec weight = splat(weights[g * kChunk + i]);
            for (int s = 0; s < COUNT; ++s) {
                even[s][g] += weight * x[s].even;
                odd[s][g] += weight * x[s].odd;
            }
        }
    }
    for (int s = 0; s < COUNT; ++s)
        for (int g = 0; g < HEADS; ++g) {
            store(sources[s].sums + g * padded(dim), even[s][g]);
            store(sources[s].sums + g * padded(dim) + W, odd[s][g]);
        }
}

// The same for all channels. Two pairs of one source at a time share their weights, where their sums fit the registers.
template <class T, int HEADS, bool PREFETCH, int COUNT>
SCOUT_INLINE void add_rows(const Source<T> (&sources)[COUNT], int64_t n, int64_t dim, const float* weights,
                           Prefetcher& ahead) {
    const auto pair = [](const T* row) { return Loader<T>::load(row); };
    const auto add_from = [&](int64_t c, auto load_pair) {
        Source<T> from[COUNT];
        for (int s = 0; s < COUNT; ++s) from[s] = sources[s].from(c);
        add_pairs<T, HEADS, PREFETCH>(from, n, dim, weights, ahead, load_pair);
    };
    int64_t c = 0;
    if constexpr (COUNT == 1 && 2 * HEADS <= kHeadsPerTile)
        for (; c + 4 * W <= dim; c += 4 * W) {
            const Source<T> both[] = {sources[0].from(c), sources[0].from(c + 2 * W)};
            add_pairs<T, HEADS, 2 * PREFETCH>(both, n, dim, weights, ahead, pair);
        }
    for (; c + 2 * W <= dim; c += 2 * W) add_from(c, pair);
    if (c < dim) add_from(c, [rest = dim - c](const T* row) { return load_tail(row, rest); });
}

// Adds a chunk's values, and its keys where their mean is wanted. Meanwhile prefetches the values `ahead`.
template <class T>
SCOUT_INLINE void add(const PartialRun& run, const Sums& sums, Chunk<T> chunk, Prefetcher ahead, const float* weights) {
    const int64_t dim = run.dim;
    for_head_tiles<kHeadsPerTile>(run.heads, [&](int64_t g, auto tile) {
        constexpr int HEADS = decltype(tile)::value;
        const float* mine = weights + g * kChunk;
        const Source<T> v = {chunk.v, sums.out + g * padded(dim)}, k = {chunk.k, sums.mean_key + g * padded(dim)};
        Prefetcher after = ahead;
        if constexpr (2 * HEADS <= kHeadsPerTile)
            if (run.mean_key) return add_rows<T, HEADS, true, 2>({v, k}, chunk.n, dim, mine, after);
        add_rows<T, HEADS, true, 1>({v}, chunk.n, dim, mine, after);
        if (run.mean_key) add_rows<T, HEADS, false, 1>({k}, chunk.n, dim, mine, after);
    });
}

template <class T>
void partial(const PartialRun& run) {
    const int64_t heads = run.heads, dim = run.dim;
    const Sums sums(run.scratch, heads, dim);
    pack_queries<T>(run, sums.q);
    Chunk<T> last = {};
    Walk<T> walk(run), ahead(run);
    for (int i = 0; i < kChunksAhead && ahead.now.n; ++i) ahead.step();
    int current = 0;
    for (; walk.now.n; current ^= 1) {
        const Chunk<T> now = walk.now, later = ahead.now.n ? ahead.now : now;
        score(run, sums, now, Prefetcher{(const char*)later.k}, sums.weights[current]);
        add(run, sums, last, Prefetcher{(const char*)later.v}, sums.weights[current ^ 1]);
        weigh(run, sums, now.n, sums.weights[current]);
        last = now;
        walk.step();
        if (ahead.now.n) ahead.step();
    }
    add(run, sums, last, Prefetcher{(const char*)last.v}, sums.weights[current ^ 1]);
    for (int64_t g = 0; g < heads; ++g) {
        const float sum = sum_lanes(load(sums.sum + g * W)), inverse = 1 / sum;
        unpack<T>(sums.out + g * padded(dim), dim, inverse, run.out + g * dim);
        if (run.mean_key) unpack<T>(sums.mean_key + g * padded(dim), dim, inverse, run.mean_key + g * dim);
        run.lse[g] = sums.maximum[g] + __builtin_logf(sum);
    }
}

}  // namespace
