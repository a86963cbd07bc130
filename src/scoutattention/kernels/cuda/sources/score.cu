// Scores of listed pages: a warp takes BATCH pages of one sequence and KV head at a time.
#include "page_scores.cuh"

// Grid (B * H, parts of N, heads / 8).   q: [B, H, G, D].   pages: int32 [B, H, N].   scores: float32 [B, H, G, N].
extern "C" __global__ void __launch_bounds__(32 * WARPS) score_pages(const void* q, const char* words, const char* bounds,
                                                                     const int* pages, float* scores, float scale,
                                                                     u32 words_s, u32 bounds_s, int pages_b, int pages_h,
                                                                     int H, int N) {
    __shared__ Exchange exchange[WARPS];
    const int row = blockIdx.x, h = row % H, first = 8 * blockIdx.z, warp = threadIdx.x / 32;
    const Digests digests = {words, bounds, words_s, bounds_s};
    const int* listed = pages + static_cast<i64>(row / H) * pages_b + h * pages_h;
    Query query;
    query.load(q, row, first, scale);
    Scorer scorer(digests, query, exchange[warp], h, first);
    float* own = scores + static_cast<i64>(row) * G * N;
    scorer.run(blockIdx.y * WARPS + warp, WARPS * gridDim.y, N, [&](int n) { return listed[n]; },
               [&](int n, int head, float score) { own[head * N + n] = score; });
}
