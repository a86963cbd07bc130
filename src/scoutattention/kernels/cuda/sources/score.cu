// Scores of pages: a warp takes BATCH pages of one sequence and KV head at a time.
#include "page_scores.cuh"

// Grid (B * H, parts of N, heads / 8).   q: [B, H, G, D].   words: [S, H, WORDS or more, P].   bounds: [S, H, 2, D or
// more].   pages: int32 [B, H, N].   closed: int64 [B], the n-th page is scored where n is less.   scores: float32
// [B, H, G, N].   Strides of words and bounds are in bytes; bounds_r leads to the steps.
extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT)
    score_pages(const void* q, const char* words, const char* bounds, const int* pages, const i64* closed,
                float* scores, float scale, u32 words_s, u32 words_h, u32 bounds_s, u32 bounds_h, u32 bounds_r,
                int pages_b, int pages_h, int H, int N) {
    __shared__ ScoreMemory memory;
    const int row = blockIdx.x, b = row / H, h = row % H, first = 8 * blockIdx.z, warp = threadIdx.x / 32;
    const int end = min(N, static_cast<int>(closed[b]));
    const Digests digests = {words + static_cast<u64>(words_h) * h, bounds + static_cast<u64>(bounds_h) * h, words_s,
                             bounds_s, bounds_r};
    const int* listed = pages + static_cast<i64>(b) * pages_b + h * pages_h;
    const auto page = [&](int n) { return listed[n]; };
    Scorer scorer(digests, memory.rings[warp], memory.exchanges[warp], first, blockIdx.y * WARPS + warp,
                  WARPS * gridDim.y, end, page);
    const i64 start = static_cast<i64>(row) * G * D;
    Query query;
    query.load(first, [&](int head, int d) { return query_at(q, start + head * D + d) * (scale * LOG2E); });
    float* own = scores + static_cast<i64>(row) * G * N;
    scorer.run(query, page, [&](int n, int head, float score) { own[head * N + n] = score; });
}
