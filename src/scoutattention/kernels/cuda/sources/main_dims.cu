// Main directions of second moments: the rows of a factor are rotated in pairs until all are orthogonal, and sorted.
//
// One-sided Jacobi (Hestenes, 1958), with the pairs of a tournament (Brent and Luk, 1985): each place has two rows, of
// which all but one move on after a round, so that each row meets every other one in D - 1 rounds.
//
// Compiled for D (channels), WARPS (of a program), PAIRS (places of a warp; D is 2 PAIRS WARPS, and more than 2) and
// SWEEPS (at most).
#include "words.cuh"

constexpr int PARTS = (D + 31) / 32;  // neighbouring numbers of a row that a lane holds
constexpr float TINY = 1e-30f;        // products of rows below it count as 0: a reciprocal may be infinite
static_assert(D == 2 * PAIRS * WARPS && D > 2, "these sizes have no kernel");

struct alignas(PARTS == 4 ? 16 : PARTS == 2 ? 8 : 4) Numbers {
    float at[PARTS];
};

struct Row {
    Numbers own;   // of this lane
    float square;  // of the whole row's length
};

struct Passed {
    Numbers of[32];
    float square;

    __device__ void put(const Row& row) { of[threadIdx.x % 32] = row.own, square = row.square; }
    __device__ void get(Row& row) const { row = {of[threadIdx.x % 32], square}; }
};

struct Scratch {
    Passed right[WARPS], left[WARPS];
    float squares[D];
    bool unfinished[WARPS];
};

// The product of two rows, in all lanes alike.
__device__ inline float product_of(const Row& a, const Row& b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PARTS; ++i) sum += a.own.at[i] * b.own.at[i];
#pragma unroll
    for (int apart = 16; apart; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
    return sum;
}

// Makes two rows orthogonal, and returns whether the square of their cosine was above `least`. The angle is approximate,
// and later sweeps mend that. So is the scale, of which nothing is left in the end.
__device__ inline bool rotate(Row& a, Row& b, float least) {
    const float product = product_of(a, b);
    const bool apart = fabsf(product) < TINY;
    const float ratio = (b.square - a.square) * reciprocal(apart ? 1 : 2 * product), root = root_of(1 + ratio * ratio);
    const float tangent = apart ? 0 : reciprocal(ratio >= 0 ? ratio + root : ratio - root);
    const float scale = reciprocal_root(1 + tangent * tangent);
    const bool unfinished = product * product > least * a.square * b.square;
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        const float x = a.own.at[i], y = b.own.at[i];
        a.own.at[i] = scale * (x - tangent * y), b.own.at[i] = scale * (y + tangent * x);
    }
    a.square -= tangent * product, b.square += tangent * product;
    return unfinished;
}

// The rows of a warp's places.
struct Places {
    Row top[PAIRS], bottom[PAIRS];

    // row(slot, row): is called with the number of each row, of D.
    template <class Visit>
    __device__ void each(Visit row) {
#pragma unroll
        for (int j = 0; j < PAIRS; ++j) {
            const int slot = 2 * (threadIdx.x / 32 * PAIRS + j);
            row(slot, top[j]), row(slot + 1, bottom[j]);
        }
    }

    // Moves upper rows to the right and lower rows to the left, around the first upper row, which stays.
    __device__ void move(Scratch& scratch) {
        const int warp = threadIdx.x / 32;
        const Row first = bottom[0], last = top[PAIRS - 1];
        if (warp < WARPS - 1) scratch.right[warp].put(warp == 0 && PAIRS == 1 ? first : last);
        if (warp > 0) scratch.left[warp].put(first);
        __syncthreads();
#pragma unroll
        for (int j = PAIRS - 1; j > 0; --j) top[j] = warp == 0 && j == 1 ? first : top[j - 1];
        if (warp > 0) scratch.right[warp - 1].get(top[0]);
#pragma unroll
        for (int j = 0; j < PAIRS - 1; ++j) bottom[j] = bottom[j + 1];
        if (warp < WARPS - 1) scratch.left[warp + 1].get(bottom[PAIRS - 1]);
        else bottom[PAIRS - 1] = last;
        __syncthreads();
    }

    // All rounds of a sweep; returns whether any pair of rows was unfinished, see `rotate`.
    __device__ bool sweep(Scratch& scratch, float least) {
        bool unfinished = false;
        each([](int, Row& row) { row.square = product_of(row, row); });
        for (int round = 0; round < D - 1; ++round) {
#pragma unroll
            for (int j = 0; j < PAIRS; ++j) unfinished |= rotate(top[j], bottom[j], least);
            move(scratch);
        }
        scratch.unfinished[threadIdx.x / 32] = unfinished;
        __syncthreads();
        for (int warp = 0; warp < WARPS; ++warp) unfinished |= scratch.unfinished[warp];
        return unfinished;
    }
};

// Grid (matrices).   factor: float32 [n, D, D], whose rows are rotated.   axes: float32 [n, D, D], the rows over their
// lengths, the longest first.   least: the square of a cosine after which no other sweep follows.
extern "C" __global__ void __launch_bounds__(32 * WARPS) main_dims(const float* factor, float* axes, float least) {
    __shared__ Scratch scratch;
    const int lane = threadIdx.x % 32;
    const i64 start = static_cast<i64>(blockIdx.x) * D * D;
    Places places;
    places.each([&](int slot, Row& row) {
#pragma unroll
        for (int i = 0; i < PARTS; ++i) {
            const int d = PARTS * lane + i;
            row.own.at[i] = d < D ? factor[start + slot * D + d] : 0;
        }
    });
    for (int sweep = 0; sweep < SWEEPS; ++sweep)
        if (!places.sweep(scratch, least)) break;
    places.each([&](int slot, Row& row) {
        row.square = product_of(row, row);
        if (lane == 0) scratch.squares[slot] = row.square == row.square ? row.square : 0;
    });
    __syncthreads();
    places.each([&](int slot, Row& row) {
        u32 before = 0;
        for (int other = lane; other < D; other += 32) {
            const float its = scratch.squares[other], own = scratch.squares[slot];
            before += its > own || (its == own && other < slot);
        }
        const i64 place = start + static_cast<i64>(__reduce_add_sync(~0u, before)) * D;
        const float length = row.square > 0 ? sqrtf(row.square) : 1;
#pragma unroll
        for (int i = 0; i < PARTS; ++i)
            if (PARTS * lane + i < D) axes[place + PARTS * lane + i] = row.own.at[i] / length;
    });
}
