// Products of queries with the rows of a matrix for each sequence and KV head.
//
// Compiled for D (channels), G (query heads of a KV head), QUERY (their type) and WARPS (of a program).
#include "words.cuh"

constexpr int CHUNKS = (D + 127) / 128;  // of 128 channels, 4 of each lane

// Grid (B * H, parts of C).   q: [B, H, G, D].   basis: float32 [B, H, C, D].   out: float32 [B, H, G, C].
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    project(const void* q, const float* basis, float* out, int basis_b, int basis_h, int H, int C) {
    const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* own = basis + static_cast<i64>(row / H) * basis_b + row % H * basis_h;
    float query[G][CHUNKS][4];
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int d = 128 * chunk + 4 * lane + i;
                query[g][chunk][i] = d < D ? query_at(q, (static_cast<i64>(row) * G + g) * D + d) : 0;
            }
        }
    }
    for (int c = blockIdx.y * WARPS + warp; c < C; c += WARPS * gridDim.y) {
        float sum[G] = {};
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int d = 128 * chunk + 4 * lane;
            if (d >= D) break;
            const float* place = own + static_cast<i64>(c) * D + d;
            const Four four = *reinterpret_cast<const Four*>(place);
            const float part[4] = {__uint_as_float(four.x), __uint_as_float(four.y), __uint_as_float(four.z),
                                   __uint_as_float(four.w)};
#pragma unroll
            for (int g = 0; g < G; ++g) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[g] += query[g][chunk][i] * part[i];
            }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
            for (int apart = 16; apart; apart /= 2) sum[g] += __shfl_xor_sync(~0u, sum[g], apart);
            if (lane == 0) out[(static_cast<i64>(row) * G + g) * C + c] = sum[g];
        }
    }
}
