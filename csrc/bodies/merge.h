// Partials of the same queries over different keys: their merge, and how much a wrong scout may have spoilt one.
#pragma once

#include "bodies/vector.h"

namespace {

using namespace scout;

// The merge of partials a and b: `rows` of them, each of `width` channels.
void merge(const PartialView& a, const PartialView& b, int64_t rows, int64_t width, float* out, float* lse) {
    for (int64_t r = 0; r < rows; ++r) {
        const float *from_a = a.out + r * width, *from_b = b.out + r * width;
        const float most = a.lse[r] > b.lse[r] ? a.lse[r] : b.lse[r];
        const bool none = a.lse[r] == -kInfinity && b.lse[r] == -kInfinity;
        const float weight_a = none ? 0 : __builtin_expf(a.lse[r] - most);
        const float weight_b = none ? 0 : __builtin_expf(b.lse[r] - most);
        const float sum = weight_a + weight_b, scale = none ? 0 : 1 / sum;
        lse[r] = none ? -kInfinity : most + __builtin_logf(sum);
        for (int64_t c = 0; c < width; ++c)
            out[r * width + c] = (weight_a * from_a[c] + weight_b * from_b[c]) * scale;
    }
}

// out = lse + (q - scout) . mean_key * scale
void correct(const float* q, const float* scout, const float* mean_key, float scale, int64_t rows, int64_t width,
             const float* lse, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
        float shift = 0;
        for (int64_t c = r * width; c < (r + 1) * width; ++c) shift += (q[c] - scout[c]) * mean_key[c];
        out[r] = lse[r] + shift * scale;
    }
}

// The scout error of a KV head: the largest, over its query heads, of |q - scout| / |q| times the weight that the far
// partial has in its merge with the near one.
void scout_error(const float* q, const float* scout, const float* far, const float* near, int64_t heads, int64_t width,
           float* out) {
    float most = 0;
    for (int64_t g = 0; g < heads; ++g) {
        float error = 0, size = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            error += (q[c] - scout[c]) * (q[c] - scout[c]);
            size += q[c] * q[c];
        }
        const float weight = 1 / (1 + __builtin_expf(near[g] - far[g]));
        const float x = weight * __builtin_sqrtf(error / size);
        most = most != most || x <= most ? most : x;  // NaN stays
    }
    *out = most;
}

}  // namespace
