// Products of queries with the min/max digests of listed pages.
#pragma once

#include "bodies/tiles.h"

namespace {

constexpr int64_t kPagesAhead = W;  // digests that are prefetched before they are read

void score_min_max(const MinMaxRun& run) {
    const int64_t width = run.width;
    pack<float>(run.bounds, run.heads, width, 1, run.scratch);
    const auto digest = [&](int64_t n) {
        return run.digests + run.pages[n < run.count ? n : run.count - 1] * run.page_stride;
    };
    for (int64_t first = 0; first < run.count; first += W) {
        const int64_t n = run.count - first < W ? run.count - first : W;
        const float *rows[W], *next[W];
        for (int i = 0; i < W; ++i) rows[i] = digest(first + i), next[i] = digest(first + i + kPagesAhead);
        row_products<float>(rows, next, n, run.scratch, run.heads, width, run.out + first, run.out_stride);
    }
}

}  // namespace
