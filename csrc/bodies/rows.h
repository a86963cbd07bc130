// What a layer computes between its matrices, for rows of float32 or bfloat16: sums, norms, rotary embedding, SwiGLU.
// All is computed in float32, and rounded once where it is written.
#pragma once

#include "bodies/channels.h"

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

// n numbers as floats: where they are, or in `memory`.
SCOUT_INLINE const float* widened(const float* x, int64_t, float*) { return x; }
SCOUT_INLINE const float* widened(const BFloat16* x, int64_t n, float* memory) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t(x[i].bits) << 16;
        __builtin_memcpy(memory + i, &bits, sizeof bits);
    }
    return memory;
}

// Where n floats are written that become numbers at `to`: there, or in `memory`.
SCOUT_INLINE float* open_row(float* to, float*) { return to; }
SCOUT_INLINE float* open_row(BFloat16*, float* memory) { return memory; }
// Makes them these numbers: rounded to the nearest, halves to even; NaN stays NaN.
SCOUT_INLINE void close_row(float*, int64_t, const float*) {}
SCOUT_INLINE void close_row(BFloat16* to, int64_t n, const float* memory) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, memory + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        to[i].bits = uint16_t(memory[i] == memory[i] ? rounded : bits >> 16 | 0x40u);
    }
}

// out = weight * x / sqrt(mean(x^2) + eps)
SCOUT_INLINE void norm_row(const float* x, const float* weight, float eps, int64_t width, float* out) {
    Vec squares = {};
    for_vectors(width, [&](int64_t c) { squares += load(x + c) * load(x + c); },
                [&](int64_t c, int64_t n) { squares += load_first(x + c, n) * load_first(x + c, n); });
    const float scale = 1 / __builtin_sqrtf(sum_lanes(squares) / width + eps);
    for (int64_t c = 0; c < width; ++c) out[c] = weight[c] * (x[c] * scale);
}

// The norm of each row, or of its sum with a change; lines of weights follow one another, again and again.
template <class T>
void norm_rows(const NormRun& run) {
    const int64_t width = run.width;
    float *memory = run.scratch, *other = memory + width;
    for (int64_t r = 0; r < run.rows; ++r) {
        const T* row = (const T*)run.x + r * width;
        const float* x = widened(row, width, memory);
        if (run.change) {
            const float* change = widened((const T*)run.change + r * width, width, other);
            T* sum = (T*)run.sum + r * width;
            float* to = open_row(sum, memory);
            for (int64_t c = 0; c < width; ++c) to[c] = x[c] + change[c];
            close_row(sum, width, to);
            x = widened(sum, width, memory);
        }
        T* out = (T*)run.out + r * width;
        float* to = open_row(out, other);
        norm_row(x, run.weight + r % run.lines * width, run.eps, width, to);
        close_row(out, width, to);
    }
}

// out = x, rotated by the angles of its position; out and x are not the same.
SCOUT_INLINE void rotate_head(const float* x, const float* cos, const float* sin, int64_t width, float* out) {
    const int64_t half = width / 2;
    for (int64_t c = 0; c < half; ++c) {
        const float first = x[c], second = x[c + half];
        out[c] = first * cos[c] - second * sin[c];
        out[c + half] = second * cos[c + half] + first * sin[c + half];
    }
}

// Heads of a projection with their bias, norms and rotary embedding: queries, keys and values.
template <class T>
void place_heads(const PlaceRun& run) {
    const int64_t D = run.dim, others = (run.heads - run.queries) / 2, rotated = run.queries + others;
    float *a = run.scratch, *b = a + D;
    for (int64_t i = 0; i < run.tokens * run.heads; ++i) {
        const int64_t t = i / run.heads, h = i % run.heads;
        const float* x = widened((const T*)run.x + i * D, D, a);
        if (run.bias) {
            for (int64_t c = 0; c < D; ++c) a[c] = x[c] + run.bias[h * D + c];
            x = a;
        }
        const bool query = h < run.queries;
        T* out = query ? (T*)run.q + (t * run.queries + h) * D
                       : (T*)(h < rotated ? run.k : run.v) + (t * others + (h - run.queries) % others) * D;
        if (h < rotated && run.paired) {
            for (int64_t c = 0; c < D / 2; ++c) b[c] = x[2 * c], b[c + D / 2] = x[2 * c + 1];
            x = b;
        }
        if (h < rotated && run.norm) {
            float* to = x == b ? a : b;
            norm_row(x, run.norm + h * D, run.eps, D, to);
            x = to;
        }
        float* to = open_row(out, x == b ? a : b);
        if (h < rotated) rotate_head(x, run.cos + t * D, run.sin + t * D, D, to);
        else __builtin_memcpy(to, x, D * sizeof(float));
        close_row(out, D, to);
    }
}

// x / (1 + exp(-x)) * up
SCOUT_INLINE Vec gated(Vec x, Vec up) {
    const Vec small = exp_negative(x < Vec{} ? x : -x);
    return x * up * (x < Vec{} ? small : splat(1)) / (1.0f + small);
}

// out = silu(gate) * up, for rows of [gate, up].
template <class T>
void swiglu(const SwigluRun& run) {
    const int64_t width = run.width;
    float *a = run.scratch, *b = a + width;
    for (int64_t r = 0; r < run.rows; ++r) {
        const T* row = (const T*)run.x + 2 * r * width;
        const float *gate = widened(row, width, a), *up = widened(row + width, width, b);
        T* out = (T*)run.out + r * width;
        float* to = open_row(out, a);
        for_vectors(width, [&](int64_t c) { store(to + c, gated(load(gate + c), load(up + c))); },
                    [&](int64_t c, int64_t n) {
                        const Vec rest = gated(load_first(gate + c, n), load_first(up + c, n));
                        __builtin_memcpy(to + c, &rest, n * sizeof(float));
                    });
        close_row(out, width, to);
    }
}

}  // namespace
