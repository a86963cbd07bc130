// What a layer computes between its matrices, for a few rows of float32: the norm, rotary embedding, and SwiGLU.
#pragma once

#include "bodies/vector.h"

namespace {

// Calls body(offset) for whole vectors, then last(offset, n) for the n < W that are left, if any.
template <class Body, class Last>
SCOUT_INLINE void for_vectors(int64_t width, Body body, Last last) {
    int64_t c = 0;
    for (; c + W <= width; c += W) body(c);
    if (c < width) last(c, width - c);
}

SCOUT_INLINE Vec load_first(const float* p, int64_t n) {
    Vec x = {};
    __builtin_memcpy(&x, p, n * sizeof(float));
    return x;
}

// out = weight * x / sqrt(mean(x^2) + eps), for each row of x with its own row of weights.
void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += width, weight += width, out += width) {
        Vec squares = {};
        for_vectors(width, [&](int64_t c) { squares += load(x + c) * load(x + c); },
                    [&](int64_t c, int64_t n) { squares += load_first(x + c, n) * load_first(x + c, n); });
        const float scale = 1 / __builtin_sqrtf(sum_lanes(squares) / width + eps);
        for (int64_t c = 0; c < width; ++c) out[c] = weight[c] * (x[c] * scale);
    }
}

// Rotates `heads` heads of x [heads, width] by the angles of one position; cos and sin are [width].
void rotate(const float* x, const float* cos, const float* sin, int64_t heads, int64_t width, float* out) {
    const int64_t half = width / 2;
    for (int64_t h = 0; h < heads; ++h, x += width, out += width)
        for (int64_t c = 0; c < half; ++c) {
            const float first = x[c], second = x[c + half];
            out[c] = first * cos[c] - second * sin[c];
            out[c + half] = second * cos[c + half] + first * sin[c + half];
        }
}

// x / (1 + exp(-x)) * up
SCOUT_INLINE Vec gated(Vec x, Vec up) {
    const Vec small = exp_negative(x < Vec{} ? x : -x);
    return x * up * (x < Vec{} ? small : splat(1)) / (1.0f + small);
}

// out = silu(gate) * up, for rows of [gate, up].
void swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
    for (int64_t r = 0; r < rows; ++r, gate_up += 2 * width, out += width) {
        const float *gate = gate_up, *up = gate_up + width;
        for_vectors(width, [&](int64_t c) { store(out + c, gated(load(gate + c), load(up + c))); },
                    [&](int64_t c, int64_t n) {
                        const Vec rest = gated(load_first(gate + c, n), load_first(up + c, n));
                        __builtin_memcpy(out + c, &rest, n * sizeof(float));
                    });
    }
}

}  // namespace
