// The blocks that a KV head wants most, by all threads of one program; block n is its thread n % THREADS's.
//
// Compiled for one G (query heads of a KV head), THREADS, and EACH (blocks of a thread, at most).
#pragma once

#include "words.cuh"

constexpr int TOP_WARPS = THREADS / 32;
static_assert(TOP_WARPS <= 32 && 32 * EACH < 1024, "a warp sums over all warps, and counts in 10 bits");
constexpr u32 ABSENT = 0;        // what orders a block that does not exist
constexpr u32 LEAST = 1;         // and one that nobody wishes for
constexpr u32 FIRST = 1u << 31;  // added where a block comes before all others

struct TopScratch {
    float heads[TOP_WARPS][G];
    u32 reached[2][TOP_WARPS];  // used in turns, so that one barrier is enough
    int votes[TOP_WARPS];
    int taken;
};

// A number of every thread and head, combined over all threads.
template <class Combine>
__device__ inline void over_threads(float (&number)[G], TopScratch& scratch, Combine combine) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int apart = 16; apart; apart /= 2)
            number[g] = combine(number[g], __shfl_xor_sync(~0u, number[g], apart));
    }
    __syncthreads();  // what the scratch held is read
    if (lane == 0) {
#pragma unroll
        for (int g = 0; g < G; ++g) scratch.heads[warp][g] = number[g];
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < G; ++g) {
        number[g] = scratch.heads[lane % TOP_WARPS][g];
#pragma unroll
        for (int apart = TOP_WARPS / 2; apart; apart /= 2)
            number[g] = combine(number[g], __shfl_xor_sync(~0u, number[g], apart));
    }
}

// The blocks of a thread: how much each is wished for, and what orders them.
struct Wishes {
    float wish[EACH];
    u32 order[EACH];

    // Of each head, a softmax of its scores over the blocks, and the mean over the heads; or, with `largest`, one softmax
    // of the largest scores.   score(g, n): natural logarithms.   end: blocks that there are, of N at most.
    template <class Score>
    __device__ void make(Score score, int end, int sink, int recent, bool largest, TopScratch& scratch) {
        float x[EACH][G], most[G], sum[G];
#pragma unroll
        for (int g = 0; g < G; ++g) most[g] = LOWEST, sum[g] = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int n = threadIdx.x + i * THREADS;
#pragma unroll
            for (int g = 0; g < G; ++g) x[i][g] = n < end ? score(g, n) * LOG2E : LOWEST;
            if (largest) {
#pragma unroll
                for (int g = 1; g < G; ++g) x[i][0] = fmaxf(x[i][0], x[i][g]), x[i][g] = LOWEST;
            }
#pragma unroll
            for (int g = 0; g < G; ++g) most[g] = fmaxf(most[g], x[i][g]);
        }
        over_threads(most, scratch, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const bool there = threadIdx.x + i * THREADS < end;
#pragma unroll
            for (int g = 0; g < G; ++g) {
                x[i][g] = there && (g == 0 || !largest) ? power_of_two(x[i][g] - most[g]) : 0;
                sum[g] += x[i][g];
            }
        }
        over_threads(sum, scratch, [](float a, float b) { return a + b; });
#pragma unroll
        for (int g = 0; g < G; ++g) sum[g] = sum[g] > 0 ? 1 / (sum[g] * (largest ? 1 : G)) : 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int n = threadIdx.x + i * THREADS;
            wish[i] = 0;
#pragma unroll
            for (int g = 0; g < G; ++g) wish[i] += x[i][g] * sum[g];
            const bool first = n < sink || n >= end - recent;
            const float known = wish[i] >= 0 ? wish[i] : 0;  // what is no number counts as nothing
            order[i] = n < end ? (__float_as_uint(known) + LEAST) | (first ? FIRST : 0) : ABSENT;
        }
    }

    // How many of the N blocks reach each of three orders.   turn: 0 and 1 in turns.
    __device__ void reach(const u32 (&least)[3], int N, int turn, TopScratch& scratch, int (&number)[3]) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        u32 own = 0;  // three numbers of 10 bits, which hold those of a warp
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const bool there = threadIdx.x + i * THREADS < N;
#pragma unroll
            for (int k = 0; k < 3; ++k) own += there && order[i] >= least[k] ? 1u << 10 * k : 0;
        }
        own = __reduce_add_sync(~0u, own);
        if (lane == 0) scratch.reached[turn][warp] = own;
        __syncthreads();
        const u32 all = lane < TOP_WARPS ? scratch.reached[turn][lane] : 0;
#pragma unroll
        for (int k = 0; k < 3; ++k) number[k] = __reduce_add_sync(~0u, all >> 10 * k & 1023);
    }

    // Leaves the `count` of highest order in keys, blocks and wishes, in no order; of equals the first are taken.
    __device__ void take(int N, int count, TopScratch& scratch, u32* keys, int* blocks, float* wishes) const {
        u32 least = 0;  // the highest order that `count` blocks reach, found two bits at a time
        int number = N, turn = 0, reached[3] = {};
        for (int bit = 30; bit >= 0 && number > count; bit -= 2, turn ^= 1) {
            const u32 next[3] = {least | 1u << bit, least | 2u << bit, least | 3u << bit};
            reach(next, N, turn, scratch, reached);
#pragma unroll
            for (int k = 0; k < 3; ++k) {
                if (reached[k] >= count) least = next[k], number = reached[k];
            }
        }
        const bool exact = number == count;
        if (!exact) reach({least + 1, ~0u, ~0u}, N, turn, scratch, reached);
        int room = exact ? 0 : count - reached[0];  // for those that barely reach it
        if (threadIdx.x == 0) scratch.taken = 0;
        __syncthreads();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int n = threadIdx.x + i * THREADS;
            bool takes = n < N && (exact ? order[i] >= least : order[i] > least);
            if (!exact) {
                const bool equal = n < N && order[i] == least;
                const u32 vote = __ballot_sync(~0u, equal);
                if (lane == 0) scratch.votes[warp] = __popc(vote);
                __syncthreads();
                int place = __popc(vote & ((1u << lane) - 1)), all = 0;
                for (int w = 0; w < TOP_WARPS; ++w) {
                    place += w < warp ? scratch.votes[w] : 0;
                    all += scratch.votes[w];
                }
                takes |= equal && place < room;
                room -= all;
                __syncthreads();
            }
            if (takes) {
                const int at = atomicAdd(&scratch.taken, 1);
                keys[at] = order[i], blocks[at] = n, wishes[at] = wish[i];
            }
        }
        __syncthreads();
    }
};

// The rank of block n, of a key, among N whose keys are listed: the highest key first, of equals the first block.
// The list goes on, with keys of 0, to a multiple of four.
__device__ inline int rank_among(const u32* keys, int N, int n, u32 key) {
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < N; j += 4) {
        const Four four = *reinterpret_cast<const Four*>(keys + j);
        rank += four.x + (j < n) > key;  // an earlier block that is equal comes first, and no key is the largest number
        rank += four.y + (j + 1 < n) > key;
        rank += four.z + (j + 2 < n) > key;
        rank += four.w + (j + 3 < n) > key;
    }
    return rank;
}

// Calls put(rank, i) for each of `count` taken blocks i: the highest key first, of equals the first block.
template <class Put>
__device__ inline void rank_taken(const u32* keys, const int* blocks, int count, Put put) {
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const u32 key = keys[i];
        const int block = blocks[i];
        int rank = 0;
#pragma unroll 8
        for (int j = 0; j < count; ++j) rank += keys[j] > key || (keys[j] == key && blocks[j] < block);
        put(rank, i);
    }
}
