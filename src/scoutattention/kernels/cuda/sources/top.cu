// The blocks that KV heads want most, from the scores of their query heads: a program for each sequence and KV head.
#include "top.cuh"

// scores: float32 [B, H, G, N].   closed: int64 [B].   blocks: int64 [B, H, count].   wishes: float32 [B, H, count].
// all_wishes: float32 [B, H, N].   Dynamic memory: 3 count words; where a thread has one block, THREADS words.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_blocks(const float* scores, const i64* closed, i64* blocks, float* wishes, float* all_wishes, int count,
               int sink, int recent, int largest, int H, int N) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ TopScratch scratch;
    const i64 row = blockIdx.x;
    const float* own = scores + row * G * N;
    const int end = min(N, static_cast<int>(closed[row / H]));
    Wishes all;
    all.make([&](int g, int n) { return own[g * N + n]; }, end, sink, recent, largest, scratch);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int n = threadIdx.x + i * THREADS;
        if (n < N) all_wishes[row * N + n] = all.wish[i];
    }
    const auto put = [&](int rank, int block, float wish) {
        blocks[row * count + rank] = block;
        wishes[row * count + rank] = wish;
    };
    if constexpr (EACH == 1) {
        const int n = threadIdx.x;
        memory[n] = n < N ? all.order[0] : 0;
        __syncthreads();
        const int rank = n < N ? rank_among(memory, N, n, all.order[0]) : count;
        if (rank < count) put(rank, n, all.wish[0]);
    } else {
        u64* keys = reinterpret_cast<u64*>(memory);
        float* wished = reinterpret_cast<float*>(keys + count);
        all.take(N, count, scratch, keys, wished);
        rank_taken(keys, count, [&](int rank, int i) { put(rank, block_of(keys[i]), wished[i]); });
    }
}
