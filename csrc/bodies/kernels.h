// The arguments of a task, as plain data, and the table of kernels that one instruction set offers.
//
// Axes as in types.py: B sequences, H KV heads, G query heads per KV head, D head dim, N listed blocks, S pages,
// P positions of a page. Every instruction set compiles the same kernels; they allocate nothing and throw nothing.
#pragma once

#include <stdint.h>

namespace scout {

// Dtypes of weights and of pages; then those of packed pages.
enum DType : int { kFloat32, kBFloat16, kFloat16, kDTypes, kInt8 = kDTypes, kInt4, kPageTypes };

// How weights are kept: as numbers of the first dtypes, or as a kind of GGUF's.
enum WeightKind : int {
    kStored = kDTypes,
    kQ4_0 = kStored, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIQ4_NL, kIQ4_XS,
    kWeightKinds
};

// A kind of GGUF's, by its number there: columns of a stored block, and its bytes.
struct StoredFormat {
    int number, kind;
    int64_t block, bytes;
};
inline constexpr StoredFormat kStoredFormats[] = {
    {0, kFloat32, 1, 4}, {1, kFloat16, 1, 2}, {30, kBFloat16, 1, 2}, {2, kQ4_0, 32, 18}, {3, kQ4_1, 32, 20},
    {6, kQ5_0, 32, 22}, {7, kQ5_1, 32, 24}, {8, kQ8_0, 32, 34}, {10, kQ2_K, 256, 84}, {11, kQ3_K, 256, 110},
    {12, kQ4_K, 256, 144}, {13, kQ5_K, 256, 176}, {14, kQ6_K, 256, 210}, {20, kIQ4_NL, 32, 18},
    {23, kIQ4_XS, 256, 136},
};

// Null where no kernel reads the kind.
constexpr const StoredFormat* stored_format(int number) {
    for (const StoredFormat& format : kStoredFormats)
        if (format.number == number) return &format;
    return nullptr;
}

// A listed block: its page, and how many of its tokens to attend to.
struct ListedBlock {
    int32_t page;
    int32_t length;
};

// Attention of the G query heads of one KV head to a run of listed blocks, none of them empty.
struct PartialRun {
    const float* q;     // [G, D]
    const void* k;      // the pool's keys at this KV head: [S, P, D], pages k_page elements apart
    const void* v;
    int64_t k_page, v_page;
    const uint16_t *k_bounds, *v_bounds;    // of packed pages alone, see partial_packed.h: bfloat16 [S, 2, D]
    int64_t k_bounds_page, v_bounds_page;
    int64_t positions;
    const ListedBlock* blocks;
    int64_t count;
    int64_t heads, dim;
    float scale;
    float* scratch;     // at least scratch_floats(heads, dim), or packed_scratch_floats, 64-byte aligned
    float* out;         // [G, D]
    float* lse;         // [G]
    float* mean_key;    // [G, D], or null
};

// Products of the G rows of `bounds` with the min/max digests of listed pages: row g has the positive channels of query
// g before its negative ones.
struct MinMaxRun {
    const float* bounds;    // [G, width]
    const float* digests;   // the digests at this KV head: [S, width], pages page_stride floats apart
    int64_t page_stride;
    const int32_t* pages;
    int64_t count;
    int64_t heads, width;
    float* scratch;
    float* out;             // [G, count], rows out_stride floats apart
    int64_t out_stride;
};

// Log-sum-exp of the products of the G rows of `q` with each listed page's keys, the keys in 2 bits a channel.
struct KeyCodeRun {
    const float* q;             // [G, D]
    const uint8_t* codes;       // the codes at this KV head: [S, code_words(D), P, 4], pages codes_page bytes apart
    const uint16_t* bounds;     // float16, the least value of each channel, and bounds_row further its step: [S, 2, D]
    int64_t codes_page, bounds_page, bounds_row;
    const int32_t* pages;
    int64_t count;
    int64_t heads, dim, positions;
    float* scratch;             // at least key_code_scratch_floats(heads, dim, positions)
    float* out;                 // [G, count], rows out_stride floats apart
    int64_t out_stride;
};

// What is kept of a page's keys in 2 bits a channel; where there is a basis, of its products with the keys.
struct WriteCodesRun {
    const float* k;             // [P, D], rows `position` floats apart
    const float* basis;         // [C, D], or null, with which C is D
    int64_t position;
    int64_t positions, dim, kept;  // P, D and C
    float* scratch;             // at least write_codes_scratch_floats(dim, kept, positions)
    uint8_t* codes;             // [code_words(C), P, 4]
    uint16_t* bounds;           // float16 [2, C], rows bounds_row apart
    int64_t bounds_row;
};

// The softmax of each head's scores over a sequence's blocks, and the mean of the heads' (or, where `largest`, the
// softmax of the heads' largest scores).
struct WishRun {
    const float* scores;    // [G, count], rows `stride` floats apart
    int64_t count, stride;
    int64_t heads;
    bool largest;
    float* scratch;         // at least 2 * count floats
    float* out;             // [count]
};

// Products of a few rows with some of a matrix's lines.
struct LinearRun {
    const void* x;          // [rows], packed
    const void* weight;     // [count, width]
    int64_t rows, width, count;
    float* out;             // [rows, count], rows out_stride floats apart
    int64_t out_stride;
    int64_t packed = 0;     // of linear_many: rows that were packed together, of which these are some
};

// Causal attention of positions first, first + 1, ... of a prompt, for the G query heads of one KV head. A position is
// `token` elements after the one before in k and v, and `row` in q and out.
struct CausalRun {
    const void* q;      // [positions, G, D]
    const void* k;      // [first + positions, D]
    const void* v;
    int64_t row, token;
    int64_t first, positions, heads, dim;
    float scale;
    float* scratch;     // at least causal_scratch_floats(positions * heads, dim), 64-byte aligned
    float* out;         // [positions, G, D]
};

// The kernels of rows: x and what is written are of one type, weights and tables are floats. scratch: two rows.

// Norms of x [rows, width], or of its sum with a change, which is written too where there is one.
struct NormRun {
    const void *x, *change;  // change: null where there is none
    const float* weight;     // [lines, width]: row r is multiplied by line r % lines
    float eps;
    int64_t rows, lines, width;
    float* scratch;
    void *sum, *out;         // [rows, width]
};

// Projected heads x [tokens, heads, dim], queries before keys before values, as many values as keys.
struct PlaceRun {
    const void* x;
    const float *bias, *norm;  // [heads, dim], and [queries + keys, dim] or more; null where there is none
    float eps;
    const float *cos, *sin;    // [tokens, dim]
    int64_t tokens, heads, queries, dim;
    bool paired;               // the two channels that rotate together follow one another
    float* scratch;
    void *q, *k, *v;           // [tokens, its heads, dim]
};

struct SwigluRun {
    const void* x;             // [rows, 2, width], gate beside up
    int64_t rows, width;
    float* scratch;
    void* out;                 // [rows, width]
};

// Attention of some queries over some keys.
struct PartialView {
    const float* out;  // [rows, width]
    const float* lse;  // [rows]
};

struct Kernels {
    const char* name;
    void (*partial[kPageTypes])(const PartialRun&);
    void (*causal[kDTypes])(const CausalRun&);
    void (*score_min_max)(const MinMaxRun&);
    void (*score_key_codes)(const KeyCodeRun&);
    void (*write_key_codes)(const WriteCodesRun&);
    void (*wishes)(const WishRun&);
    void (*pack_rows[kWeightKinds])(const float* rows, int64_t count, int64_t width, void* packed);
    void (*linear[kWeightKinds])(const LinearRun&);
    // Many rows, of `packed` in all, and their products with a stored kind. Null where the instruction set has no fast
    // products of bytes, and products of floats are faster.
    void (*pack_many)(const float* rows, int64_t count, int64_t width, int64_t packed, void* to);
    void (*linear_many[kWeightKinds - kStored])(const LinearRun&);
    // Lines of a stored kind as numbers [count, width], in float32 and in bfloat16.
    void (*expand[kWeightKinds - kStored][2])(const uint8_t* lines, int64_t count, int64_t width, void* out);
    void (*merge)(const PartialView& a, const PartialView& b, int64_t rows, int64_t width, float* out, float* lse);
    void (*correct)(const float* q, const float* scout, const float* mean_key, float scale, int64_t rows, int64_t width,
                    const float* lse, float* out);
    void (*scout_error)(const float* q, const float* scout, const float* far, const float* near, int64_t heads,
                        int64_t width, float* out);
    // Of rows, in float32 and in bfloat16.
    void (*norm_rows[2])(const NormRun&);
    void (*place_heads[2])(const PlaceRun&);
    void (*swiglu[2])(const SwigluRun&);
    uint64_t (*read_words)(const char* data, int64_t bytes);  // their sum; bytes: a multiple of 256
};

// Channels, padded to whole pairs of vectors; 32 is the widest pair.
constexpr int64_t padded(int64_t dim) { return (dim + 31) / 32 * 32; }

// Columns of stored weights that go together, and bytes of as many of a packed row.
constexpr int64_t kStoredPanel = 256, kStoredPanelBytes = 640;

// Bytes of a packed row.
constexpr int64_t packed_row_bytes(int kind, int64_t width) {
    if (kind < kDTypes) return padded(width) * int64_t(sizeof(float));
    return (width + kStoredPanel - 1) / kStoredPanel * kStoredPanelBytes;
}

// Lines of stored weights that are laid out together for many rows.
constexpr int64_t kManyLines = 32;

// Floats of scratch memory of `partial`: packed queries, two accumulators, weights of two chunks of 32 keys, and per
// head the running sum and maximum.
constexpr int64_t scratch_floats(int64_t heads, int64_t dim) { return heads * (3 * padded(dim) + 2 * 32 + 17); }

// Keys of a prompt that are laid out together, and rows that share them at once.
constexpr int kCausalKeys = 64, kCausalRows = 6;

// Floats of scratch memory of `causal`: queries, sums of values and of weights, and maxima of all rows; a tile of keys,
// one of values, and scores.
constexpr int64_t causal_scratch_floats(int64_t rows, int64_t dim) {
    rows = (rows + kCausalRows - 1) / kCausalRows * kCausalRows;
    return rows * (dim + padded(dim) + 17) + kCausalKeys * (dim + padded(dim) + kCausalRows);
}

// Words of 16 channels that hold a key of 2-bit codes.
constexpr int64_t code_words(int64_t dim) { return (dim + 15) / 16; }

// Words that hold `count` codes of `bits` bits.
constexpr int64_t packed_words(int64_t count, int bits) { return (count * bits + 31) / 32; }

// Channels of a row of 2-bit products, padded to whole vectors of bytes; 64 is the widest.
constexpr int64_t code_row(int64_t dim) { return (dim + 63) / 64 * 64; }

// Floats of scratch memory of `score_key_codes`: queries and their magnitudes; for each of at most 16 pages two
// factors, two times 16 lanes, its scores, and its products in bytes.
constexpr int64_t key_code_scratch_floats(int64_t heads, int64_t dim, int64_t positions) {
    return heads * (2 * code_row(dim) + 16 * (34 + padded(positions) + code_row(dim) / 4));
}

// Floats of scratch memory of `write_key_codes`: keys and their main dimensions by channel; two numbers of each
// dimension, and three of each lane of at most 16 of them.
constexpr int64_t write_codes_scratch_floats(int64_t dim, int64_t kept, int64_t positions) {
    return code_row(dim) * padded(positions) + code_row(kept) * (padded(positions) + 2) + 3 * 16 * 16;
}

// Floats of scratch memory of `packed_partial`: three accumulators and queries; queries and weights in pairs of bytes,
// scores, six numbers; bounds; a page of keys by token.
constexpr int64_t packed_scratch_floats(int64_t heads, int64_t dim, int64_t positions) {
    const int64_t D = padded(dim), P = padded(positions);
    return heads * (4 * D + D / 2 + P / 2 + P + 6) + 4 * D + P * D / 4;
}

}  // namespace scout
