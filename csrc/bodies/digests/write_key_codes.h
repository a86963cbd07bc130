// Keys of a page in 2 bits a channel, or in 2 bits for each of the first main dimensions: the twin of
// reference.write_key_codes.
//
// Keys are transposed, so that each lane is a position of the page. The products with a basis then need no sums over
// lanes, and 16 channels of a lane's key are a word of its codes.
#pragma once

#include "bodies/codes.h"

namespace {

constexpr int kMainDims = 8;                 // that share a loaded key
constexpr int kKeyVectors = W == 16 ? 2 : 1;  // of positions, that share a loaded number of the basis
constexpr int64_t kWordCodes = 16;
constexpr float kLargestCode = 3.0f;

// keys[c * positions + p] = channel c of position p. The last position stands in for what pads the page.
SCOUT_INLINE void transpose_keys(const WriteCodesRun& run, int64_t positions, float* keys) {
    for (int64_t p = 0; p < positions; p += W)
        for (int64_t c = 0; c < run.dim; c += W) {
            Vec x[W];
            for (int i = 0; i < W; ++i) {
                const int64_t row = p + i < run.positions ? p + i : run.positions - 1;
                const float* key = run.k + row * run.position + c;
                x[i] = c + W <= run.dim ? load(key) : load_words(key, run.dim - c);
            }
            transpose(x);
            for (int i = 0; i < W; ++i) store(keys + (c + transposed_lane(i)) * positions + p, x[i]);
        }
}

// main[c * positions + p] = row c of the basis times the key of position p.
template <int ROWS>
SCOUT_INLINE void multiply_basis(const WriteCodesRun& run, const float* keys, int64_t positions, int64_t c,
                                 float* main) {
    for (int64_t p = 0; p < positions; p += kKeyVectors * W) {
        Vec sum[ROWS][kKeyVectors] = {};
        for (int64_t d = 0; d < run.dim; ++d) {
            Vec key[kKeyVectors];
            for (int v = 0; v < kKeyVectors; ++v) key[v] = load(keys + d * positions + p + v * W);
            for (int r = 0; r < ROWS; ++r) {
                const Vec each = in_register(splat(run.basis[(c + r) * run.dim + d]));
                for (int v = 0; v < kKeyVectors; ++v) sum[r][v] += each * key[v];
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < kKeyVectors; ++v) store(main + (c + r) * positions + p + v * W, sum[r][v]);
    }
}

// The bounds of W channels, and what their codes are made of: halves of the least value and of the step.
struct HalfBounds {
    Vec least, step;
};

// Bounds of the channels from c on, which are written too. A channel with a NaN has bounds of NaN.
SCOUT_INLINE HalfBounds write_bounds(const WriteCodesRun& run, const float* values, int64_t positions, int64_t c,
                                     float* lanes) {
    float *lowest = lanes, *highest = lanes + W * W, *broken = lanes + 2 * W * W;
    for (int64_t i = 0; i < W; ++i) {
        const float* channel = values + (c + i < run.kept ? c + i : run.kept - 1) * positions;
        Vec high = load(channel), low = -high, nan = {};
        for (int64_t p = 0; p < positions; p += W) {
            const Vec x = load(channel + p);
            high = larger(x, high), low = larger(-x, low);
            nan = x == x ? nan : splat(1);
        }
        store(lowest + i * W, low), store(highest + i * W, high), store(broken + i * W, nan);
    }
    const Vec no_number = fold_rows<Largest>(broken) > Vec{} ? splat(__builtin_nanf("")) : Vec{};
    const Vec low = -fold_rows<Largest>(lowest) + no_number, high = fold_rows<Largest>(highest) + no_number;
    uint16_t bounds[2][2 * W] = {};
    narrow_to_half(low, bounds[0]);
    narrow_to_half((high - low) / kLargestCode, bounds[1]);
    const int64_t bytes = (run.kept - c < W ? run.kept - c : W) * int64_t(sizeof(uint16_t));
    for (int64_t of = 0; of < 2; ++of) __builtin_memcpy(run.bounds + of * run.bounds_row + c, bounds[of], bytes);
    Vec half[2];
    for (int of = 0; of < 2; ++of)
        half[of] = 0.5f * channels(reinterpret_cast<const Float16*>(bounds[of]), 0, 2 * W).even;
    return {half[0], half[1] > Vec{} ? half[1] : splat(1)};
}

// The codes of a word's channels, the first of them c, from their values and half bounds.
SCOUT_INLINE void write_word(const WriteCodesRun& run, const float* values, int64_t positions, int64_t c,
                             const float* least, const float* step) {
    const int64_t count = run.kept - c < kWordCodes ? run.kept - c : kWordCodes;
    uint8_t* to = run.codes + c / kWordCodes * run.positions * int64_t(sizeof(uint32_t));
    for (int64_t p = 0; p < run.positions; p += W) {
        Bits word = {};
        for (int64_t i = 0; i < count; ++i) {
            const Vec x = (0.5f * load(values + (c + i) * positions + p) - splat(least[i])) / splat(step[i]);
            const Vec code = -larger(-larger(x, Vec{}), splat(-kLargestCode));  // 0 for NaN
            word |= (Bits(code + kRound) & 3u) << uint32_t(8 * (i % 4) + 2 * (i / 4));
        }
        const int64_t there = run.positions - p < W ? run.positions - p : W;
        __builtin_memcpy(to + p * sizeof(uint32_t), &word, there * sizeof(uint32_t));
    }
}

void write_key_codes(const WriteCodesRun& run) {
    const int64_t positions = padded(run.positions), rows = code_row(run.kept);
    float *keys = run.scratch, *main = keys + code_row(run.dim) * positions;
    float *least = main + rows * positions, *step = least + rows, *lanes = step + rows;
    transpose_keys(run, positions, keys);
    if (run.basis) {
        int64_t c = 0;
        for (; c + kMainDims <= run.kept; c += kMainDims) multiply_basis<kMainDims>(run, keys, positions, c, main);
        for (; c < run.kept; ++c) multiply_basis<1>(run, keys, positions, c, main);
    }
    const float* values = run.basis ? main : keys;
    for (int64_t c = 0; c < run.kept; c += W) {
        const HalfBounds half = write_bounds(run, values, positions, c, lanes);
        store(least + c, half.least), store(step + c, half.step);
    }
    for (int64_t c = 0; c < run.kept; c += kWordCodes)
        write_word(run, values, positions, c, least + c, step + c);
}

}  // namespace
