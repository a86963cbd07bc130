// The blocks that a KV head wants most, by all threads of one program; thread n % THREADS holds block n.
//
// Compiled for one G (query heads of a KV head), THREADS, and EACH (blocks of a thread, at most).
#pragma once

#include "words.cuh"

constexpr int TOP_WARPS = THREADS / 32;
constexpr int DIGIT = 11;           // bits of an order that are looked at at a time
constexpr int BINS = 1 << DIGIT;    // their values
constexpr int OWN_BINS = BINS / THREADS;
static_assert(TOP_WARPS <= 32 && OWN_BINS * THREADS == BINS, "a warp sums over all warps, and a thread over whole bins");
constexpr u32 ABSENT = 0;        // what orders a block that does not exist
constexpr u32 LEAST = 1;         // and one that nobody wishes for
constexpr u32 FIRST = 1u << 31;  // added where a block comes before all others

struct TopScratch {
    float heads[TOP_WARPS][G];
    int bins[BINS];
    int sums[TOP_WARPS];
    int votes[TOP_WARPS];
    int found, above, within;  // a bin, blocks in higher ones, and blocks in it
    int taken;
};

// A block that was taken, as a number that is larger the earlier it comes: by its order, and of equals the first.
__device__ inline u64 taken_key(u32 order, int block) { return static_cast<u64>(order) << 32 | ~static_cast<u32>(block); }
__device__ inline int block_of(u64 key) { return static_cast<int>(~static_cast<u32>(key)); }

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

    // Counts the blocks of each bin: those whose order, shifted, has `prefix` above its last DIGIT bits.
    __device__ void count_bins(u32 prefix, int shift, int N, TopScratch& scratch) const {
#pragma unroll
        for (int i = 0; i < OWN_BINS; ++i) scratch.bins[threadIdx.x + i * THREADS] = 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const u32 place = order[i] >> shift;
            if (threadIdx.x + i * THREADS < N && (place >> DIGIT) == prefix) atomicAdd(&scratch.bins[place % BINS], 1);
        }
        __syncthreads();
    }

    // Finds the bin of the `count`-th block from the highest bin down.
    __device__ static void find_bin(int count, TopScratch& scratch) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, top = BINS - 1 - OWN_BINS * threadIdx.x;
        int own = 0;
#pragma unroll
        for (int i = 0; i < OWN_BINS; ++i) own += scratch.bins[top - i];
        int reached = own;  // by this thread's bins and all higher ones
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            const int other = __shfl_up_sync(~0u, reached, apart);
            reached += lane >= apart ? other : 0;
        }
        if (lane == 31) scratch.sums[warp] = reached;
        __syncthreads();
        reached += __reduce_add_sync(~0u, lane < warp ? scratch.sums[lane] : 0);
        int above = reached - own;
        if (above < count && count <= reached) {
            int bin = top;
            while (above + scratch.bins[bin] < count) above += scratch.bins[bin--];
            scratch.found = bin, scratch.above = above, scratch.within = scratch.bins[bin];
        }
        __syncthreads();
    }

    // Leaves the keys and wishes of the `count` of highest order, in no order; of equals the first are taken.
    __device__ void take(int N, int count, TopScratch& scratch, u64* keys, float* wishes) const {
        u32 least = 0;  // the highest order that `count` blocks reach
        u32 prefix = 0;    // its bits that are known
        int room = count;  // for blocks of that order
        bool exact = N == count;
#pragma unroll 1
        for (int shift = 2 * DIGIT; !exact && shift >= 0; shift -= DIGIT) {
            count_bins(prefix, shift, N, scratch);
            find_bin(room, scratch);
            prefix = prefix << DIGIT | scratch.found;
            room -= scratch.above;
            exact = room == scratch.within;
            least = prefix << shift;
        }
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
                keys[at] = taken_key(order[i], n), wishes[at] = wish[i];
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

// Calls put(rank, i) for each of `count` keys i: the highest first. Four threads find a rank together.
template <class Put>
__device__ inline void rank_taken(const u64* keys, int count, Put put) {
    for (int first = 0; first < count; first += THREADS / 4) {
        const int i = first + threadIdx.x / 4;
        const u64 key = i < count ? keys[i] : 0;
        int rank = 0;
#pragma unroll 4
        for (int j = threadIdx.x % 4; j < count; j += 4) rank += keys[j] > key;
        rank += __shfl_xor_sync(~0u, rank, 1);
        rank += __shfl_xor_sync(~0u, rank, 2);
        if (i < count && threadIdx.x % 4 == 0) put(rank, i);
    }
}
