// The wishes of a KV head: a distribution over the blocks, on which its query heads agree.
#pragma once

#include "bodies/rows.h"

namespace {

using namespace scout;

// exp(x - most) of a row's numbers; returns their sum.
SCOUT_INLINE float exponentials(const float* x, int64_t n, float* out) {
    Vec most = splat(-kInfinity), sum = {};
    for_vectors(n, [&](int64_t c) { most = larger(load(x + c), most); },
                [&](int64_t c, int64_t rest) { most = larger(first_lanes(load_first(x + c, rest), rest), most); });
    const float highest = max_lane(most);
    for_vectors(n, [&](int64_t c) {
        const Vec e = exp_negative(load(x + c) - highest);
        store(out + c, e);
        sum += e;
    }, [&](int64_t c, int64_t rest) {
        const Vec e = exp_negative(first_lanes(load_first(x + c, rest) - highest, rest));
        __builtin_memcpy(out + c, &e, rest * sizeof(float));
        sum += e;
    });
    return sum_lanes(sum);
}

void wishes(const WishRun& run) {
    const int64_t n = run.count, rows = run.largest ? 1 : run.heads;
    const float* scores = run.scores;
    if (run.largest) {
        for (int64_t i = 0; i < n; ++i) run.scratch[n + i] = scores[i];
        for (int64_t g = 1; g < run.heads; ++g)
            for (int64_t i = 0; i < n; ++i) {
                const float x = scores[g * run.stride + i];
                run.scratch[n + i] = x > run.scratch[n + i] ? x : run.scratch[n + i];
            }
        scores = run.scratch + n;
    }
    for (int64_t i = 0; i < n; ++i) run.out[i] = 0;
    for (int64_t g = 0; g < rows; ++g) {
        const float part = 1 / (rows * exponentials(scores + g * run.stride, n, run.scratch));
        for (int64_t i = 0; i < n; ++i) run.out[i] += part * run.scratch[i];
    }
}

}  // namespace
