// Scores of pages: a warp takes BATCH pages of one sequence and KV head at a time.
//
// Compiled for WARPS (of a program) and TURNED: the channels of a query before it is multiplied by a basis, or 0 where
// queries have the channels of the pages.
#include "page_scores.cuh"

// Grid (B * H, parts of N, heads / 8).   q: [B, H, G, TURNED or D].   basis: float32 [B, H, TURNED, D].
// table: int32 [B, NB], pages.   blocks: int64 [B, H, N], those that are scored, or null for the first N.
// closed: int64 [B], the n-th block is scored where n is less; or null for all.   scores: float32 [B, H, G, N].
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    score_pages(const void* q, const float* basis, const char* words, const char* bounds, const int* table,
                const i64* blocks, const i64* closed, float* scores, float scale, u32 words_s, u32 bounds_s,
                int basis_b, int table_b, int H, int N) {
    __shared__ Exchange exchange[WARPS];
    const int row = blockIdx.x, b = row / H, h = row % H, first = 8 * blockIdx.z, warp = threadIdx.x / 32;
    const int end = closed ? min(N, static_cast<int>(closed[b])) : N;
    const Digests digests = {words, bounds, words_s, bounds_s};
    const int* pages = table + static_cast<i64>(b) * table_b;
    Query query;
#if TURNED
    __shared__ float turned[8][D];
    const float* own_basis = basis + static_cast<i64>(b) * basis_b + h * TURNED * D;
    for (int i = threadIdx.x; i < min(8, G - first) * D; i += 32 * WARPS) {
        const i64 start = (static_cast<i64>(row) * G + first + i / D) * TURNED;
        float sum = 0;
#pragma unroll 32
        for (int c = 0; c < TURNED; ++c) sum += query_at(q, start + c) * own_basis[c * D + i % D];
        turned[i / D][i % D] = sum * (scale * LOG2E);
    }
    __syncthreads();
    query.load(first, [&](int head, int d) { return turned[head - first][d]; });
#else
    const i64 start = static_cast<i64>(row) * G * D;
    query.load(first, [&](int head, int d) { return query_at(q, start + head * D + d) * (scale * LOG2E); });
#endif
    Scorer scorer(digests, query, exchange[warp], h, first);
    float* own = scores + static_cast<i64>(row) * G * N;
    const i64* listed = blocks + static_cast<i64>(row) * N;
    scorer.run(blockIdx.y * WARPS + warp, WARPS * gridDim.y, end, [&](int n) { return pages[blocks ? listed[n] : n]; },
               [&](int n, int head, float score) { own[head * N + n] = score; });
}
