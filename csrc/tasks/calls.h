// The calls that are cut into tasks: what each computes, and what makes its `Work` for the worker threads.
//
// Axes as in bodies/kernels.h. Every make_..._work checks each index before a task uses it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "bodies/kernels.h"
#include "runtime/gate.h"
#include "runtime/worker_threads.h"

namespace scout {

// int32 [B, H, N], strides in elements; contiguous along N.
struct Table {
    const int32_t* data;
    int64_t b_stride, h_stride;
    const int32_t* row(int64_t b, int64_t h) const { return data + b * b_stride + h * h_stride; }
};

// Keys and values of one layer of a pool: [S, H, P, D] each, strides in elements, contiguous in the last two dims.
// Packed, keys are [S, H, packed_words(D, bits), P, 4], values [S, H, packed_words(P, bits), D, 4] and the bfloat16
// bounds of each [S, H, 2, D], contiguous but for the first two dims.
struct PoolLayer {
    const char *k, *v;
    int64_t k_page, k_head, v_page, v_head;
    const uint16_t *k_bounds, *v_bounds;  // null where the layer is not packed
    int64_t k_bounds_page, k_bounds_head, v_bounds_page, v_bounds_head;
    int64_t pages, positions;
    DType dtype;
};

struct PartialCall {
    const float* q;                 // [B, H, G, D]
    int64_t B, H, G, D, N;
    float scale;
    PoolLayer layer;
    Table index, length;            // [B, H, N]
    float *out, *lse, *mean_key;    // [B, H, G, D], [B, H, G], and [B, H, G, D] or null
    std::shared_ptr<Gate> gate;     // nothing is written once it is shut; null where it never will be
};

// Queries, and the pages whose digests they are scored with, whichever kind of digest it is. Of each sequence the first
// `closed` pages are scored, and nothing is written for the others, which may be any numbers.
struct ScoreCall {
    const float* q;                 // [B, H, G, D]
    int64_t B, H, G, D, N;
    int64_t page_count;
    Table pages;                    // [B, H, N]: h_stride is 0 where all heads have one list
    const int64_t* closed;          // [B], at most N
    float* out;                     // [B, H, G, N]
};

// Min/max digests of one layer: [S, H, 2 D], strides in elements, contiguous in the last dim.
struct MinMaxLayer {
    const float* digests;
    int64_t page_stride, head_stride;
};

// 2-bit digests of one layer: codes [S, H, code_words(D), P, 4] and float16 bounds [S, H, 2, D], strides in elements;
// codes contiguous but for the first two dims, bounds but for the first three.
struct KeyCodeLayer {
    uint8_t* codes;
    uint16_t* bounds;
    int64_t codes_page, codes_head, bounds_page, bounds_head, bounds_row, positions;
};

// Keys of blocks, to be kept in 2 bits at pages of a layer, no two of them alike.
struct WriteCodesCall {
    const float* k;                 // [n, H, P, D], strides in floats, contiguous in the last dim
    int64_t n, H, P, D;
    int64_t k_block, k_head, k_position;
    const float* basis;             // [R, H, C, D], rows basis_row floats apart
    int64_t C;                      // numbers that are kept of a key: D without a basis
    int64_t basis_row, basis_rows;
    const int64_t* which;           // each block's row of it, which_stride apart: 0 where they have one; null: no basis
    int64_t which_stride;
    KeyCodeLayer layer;
    const int64_t* pages;           // [n]
    int64_t page_count;
};

// The wishes of each KV head for its sequence's blocks, and the `count` blocks that it wishes for most.
struct TopBlocksCall {
    const float* scores;            // [B, H, G, N]
    int64_t B, H, G, N;
    const int64_t* closed;          // [B], blocks that each sequence has
    int64_t sink, recent, count;    // so many first and last blocks come before all others
    bool largest;                   // see WishRun
    float* wishes;                  // [B, H, N], 0 where there is no block
    int64_t* blocks;                // [B, H, count], the largest wish first
    float* top_wishes;              // [B, H, count], of these blocks
};

// Lines of a matrix that are kept alike.
struct LinearPart {
    int kind;                       // a DType or a WeightKind
    const char* weight;             // [M, lines, line_bytes], matrices matrix_bytes apart
    int64_t matrix_bytes, line_bytes, lines;
};

// out = x weight^T, for M matrices with B rows each; every line of a matrix is contiguous.
struct LinearCall {
    const float* x;                 // [M, B, I]
    int64_t M, B, I, O;
    std::vector<LinearPart> parts;  // of each matrix, O lines in all
    float* out;                     // [M, B, O]
};

// Scores by 2-bit digests of queries times `scale`, and the blocks that are wanted most. Where `basis` has parts, its
// products are the queries. The scores, and `out` of the basis, are the work's own.
struct TopByCodesCall {
    LinearCall basis;
    float scale;
    ScoreCall score;
    KeyCodeLayer layer;
    TopBlocksCall top;
};

// Causal attention of the last n of T positions of a prompt.
struct CausalCall {
    DType dtype;                    // of q, k and v
    const char *q, *k, *v;          // [n, H, G, D], [T, H, D] twice
    int64_t n, T, H, G, D;
    float scale;
    float* out;                     // [n, H, G, D]
};

// Lines of stored weights as numbers [lines, I].
struct ExpandCall {
    int kind;                       // a WeightKind
    const uint8_t* weight;
    int64_t line_bytes, lines, I;
    DType dtype;                    // of out: float32 or bfloat16
    void* out;
};

// Rows that are computed one by one.
struct RowsCall {
    int64_t rows, row_bytes;        // row_bytes: that a row reads and writes
    int64_t scratch;                // floats of memory that a task needs
    std::function<void(int64_t first, int64_t end, float* scratch)> compute;
};

// Rows times a matrix, and the heads of the products placed; `product.out`, and what `place` reads and keeps beside
// tables, are the work's own.
struct HeadsCall {
    LinearCall product;             // M is 1
    PlaceRun place;
};

// What follows a layer's attention: the output product, the feed-forward part, and the norm that comes next.
struct LayerEndCall {
    const float *x, *attended;      // [B, E], the residual stream, and [B, A]
    int64_t B, A, E, I;
    std::vector<LinearPart> output, gate_up, down;  // [E, A], [2 I, E], [E, I]
    const float *post_norm, *next_norm;             // [E]
    float eps;
    float *sum, *out;               // [B, E], the residual stream, and its norm
};

// All throw std::invalid_argument where an index or a length is out of range, or memory is not aligned. The memory that
// a call points to must live until the work is done, tables excepted. `threads`: how many will share the work.
std::unique_ptr<Work> make_partial_work(const Kernels& kernels, const PartialCall& call, int threads);
std::unique_ptr<Work> make_score_work(const Kernels& kernels, const ScoreCall& call, const MinMaxLayer& layer,
                                      int threads);
std::unique_ptr<Work> make_score_work(const Kernels& kernels, const ScoreCall& call, const KeyCodeLayer& layer,
                                      int threads);
std::unique_ptr<Work> make_write_codes_work(const Kernels& kernels, const WriteCodesCall& call, int threads);
std::unique_ptr<Work> make_top_blocks_work(const Kernels& kernels, const TopBlocksCall& call, int threads);
std::unique_ptr<Work> make_top_by_codes_work(const Kernels& kernels, const TopByCodesCall& call, int threads);  // with scores
std::unique_ptr<Work> make_causal_work(const Kernels& kernels, const CausalCall& call, int threads);
std::unique_ptr<Work> make_linear_work(const Kernels& kernels, const LinearCall& call, int threads);
// The same, by the kernels for many rows: M is 1, and every part is of a stored kind.
std::unique_ptr<Work> make_many_rows_work(const Kernels& kernels, const LinearCall& call, int threads);
std::unique_ptr<Work> make_expand_work(const Kernels& kernels, const ExpandCall& call, int threads);
// Both need a row, and lines in every matrix.
std::unique_ptr<Work> make_heads_work(const Kernels& kernels, const HeadsCall& call, int threads);
std::unique_ptr<Work> make_layer_end_work(const Kernels& kernels, const LayerEndCall& call, int threads);
std::unique_ptr<Work> make_rows_work(const RowsCall& call, int threads);

// Adds the 64-bit words of a memory to `sum`; its speed is the read bandwidth of the machine. `bytes` must be a
// multiple of 256.
std::unique_ptr<Work> make_read_work(const Kernels& kernels, const void* data, int64_t bytes,
                                     std::atomic<uint64_t>& sum, int threads);

}  // namespace scout
