// What the kernels share: 16-bit numbers as pairs in a word, the matrix unit, and copies. No header of the toolkit is used.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define LOWEST (-3.0e38f)  // below every score, and finite: the difference of two is no NaN

struct alignas(8) Two { u32 x, y; };
struct alignas(16) Four { u32 x, y, z, w; };

// Two numbers rounded to float16, `low` in the lower half.
__device__ inline u32 halves(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ inline u32 times(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

__device__ inline float log_of_two(float x) {
    float logarithm;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
    return logarithm;
}

// One over a number, its root, and one over its root: to some 22 bits.
__device__ inline float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ inline float root_of(float x) {
    float result;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ inline float reciprocal_root(float x) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// sum += a b, of a [16 rows, 16] and b [16, 8 columns] in float16. Lane 4 r + t holds of a: row r in a0 and a2, row
// r + 8 in a1 and a3; of b: column r; of the sum: rows r (0, 1) and r + 8 (2, 3), columns 2 t and 2 t + 1. The places
// along the inner axis are those of lane t in a and b alike, so any order will do that both share.
__device__ inline void multiply(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Queues a copy of 16 bytes from global to shared memory.
__device__ inline void copy_16_bytes(void* to, const void* from) {
    const u32 place = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
}

// Ends a set of a thread's copies, which may have none.
__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most SETS sets of a thread's copies are under way, the newest.
template <int SETS>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(SETS) : "memory");
}

// A number of a query, whatever its type: QUERY is 0 for float32, 1 for bfloat16, 2 for float16.
__device__ inline float query_at(const void* q, i64 place) {
#if QUERY == 0
    return static_cast<const float*>(q)[place];
#elif QUERY == 1
    return __uint_as_float(static_cast<u32>(static_cast<const u16*>(q)[place]) << 16);
#else
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(static_cast<const u16*>(q)[place]));
    return number;
#endif
}
