// A thin layer over the compiler's vector types: W floats at a time, W set by the unit that includes this.
//
// Included by the units in isa_*.cpp alone. Everything is in an unnamed namespace and no standard template is used,
// so that no code built for one instruction set can be linked into another.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace {

constexpr int W = SCOUT_VECTOR_FLOATS;

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));

#define SCOUT_INLINE inline __attribute__((always_inline))

constexpr float kInfinity = __builtin_inff();

SCOUT_INLINE Vec load(const float* p) {
    Vec x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

SCOUT_INLINE Bits load_bits(const void* p) {
    Bits x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

SCOUT_INLINE void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }

SCOUT_INLINE Vec splat(float x) { return x - Vec{}; }

SCOUT_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
    typedef Lanes<I...> type;
};
typedef CountTo<W>::type AllLanes;

// Where lane `i` of a fold of vectors a and b comes from: from lane index(i, 0) of a ++ b plus lane index(i, 1).
// Four vectors folded by Unpack, then Halves, leave their sums over lanes 4j .. 4j+3 in quad j, one vector per lane.
struct Unpack {
    static constexpr int index(int i, int part) { return i / 4 * 4 + i % 4 / 2 + 2 * part + (i & 1 ? W : 0); }
};
struct Halves {
    static constexpr int index(int i, int part) { return i / 4 * 4 + i % 2 + 2 * part + (i & 2 ? W : 0); }
};
// Adds neighbouring quads of a ++ b.
struct Quads {
    static constexpr int index(int i, int part) { return 4 * (2 * (i / 4) + part) + i % 4; }
};

struct Sum {
    static SCOUT_INLINE Vec of(Vec a, Vec b) { return a + b; }
};
struct Largest {
    static SCOUT_INLINE Vec of(Vec a, Vec b) { return larger(a, b); }
};

template <class How, class Join, int... I>
SCOUT_INLINE Vec fold(Vec a, Vec b, Lanes<I...>) {
    return Join::of(__builtin_shufflevector(a, b, How::index(I, 0)...),
                    __builtin_shufflevector(a, b, How::index(I, 1)...));
}

template <class How, class Join>
SCOUT_INLINE Vec fold(Vec a, Vec b) {
    return fold<How, Join>(a, b, AllLanes());
}

// The sums (or what `Join` makes of two) of four vectors, still spread over quads.
template <class Join = Sum>
SCOUT_INLINE Vec fold4(const Vec x[4]) {
    return fold<Halves, Join>(fold<Unpack, Join>(x[0], x[1]), fold<Unpack, Join>(x[2], x[3]));
}

// W / 4 results of fold4 to the sums of W vectors, one per lane.
template <class Join = Sum>
SCOUT_INLINE Vec fold_quads(const Vec x[W / 4]) {
    if constexpr (W == 4) return x[0];
    else if constexpr (W == 8) return fold<Quads, Join>(x[0], x[1]);
    else return fold<Quads, Join>(fold<Quads, Join>(x[0], x[1]), fold<Quads, Join>(x[2], x[3]));
}

// W vectors in memory to the sums (or what `Join` makes) of their lanes: lane i is that of vector i.
template <class Join>
SCOUT_INLINE Vec fold_rows(const float* rows) {
    Vec quads[W / 4];
    for (int r = 0; r < W; r += 4) {
        const float* row = rows + r * W;
        const Vec x[4] = {load(row), load(row + W), load(row + 2 * W), load(row + 3 * W)};
        quads[r / 4] = fold4<Join>(x);
    }
    return fold_quads<Join>(quads);
}

template <int Distance, int... I>
SCOUT_INLINE Vec swapped(Vec x, Lanes<I...>) {
    return __builtin_shufflevector(x, x, (I ^ Distance)...);
}

template <int Distance = W / 2>
SCOUT_INLINE float max_lane(Vec x) {
    if constexpr (Distance == 0) return x[0];
    else return max_lane<Distance / 2>(larger(x, swapped<Distance>(x, AllLanes())));
}

template <int Distance = W / 2>
SCOUT_INLINE float sum_lanes(Vec x) {
    if constexpr (Distance == 0) return x[0];
    else return sum_lanes<Distance / 2>(x + swapped<Distance>(x, AllLanes()));
}

template <int... I>
SCOUT_INLINE IntVec lane_numbers(Lanes<I...>) {
    return IntVec{I...};
}

// x where the lane number is below n, else -inf.
SCOUT_INLINE Vec first_lanes(Vec x, int64_t n) {
    return lane_numbers(AllLanes()) < int32_t(n) - IntVec{} ? x : splat(-kInfinity);
}

// exp(x) for x <= 0, relative error below 3e-7; 0 below the smallest normal result.
// exp(x) = 2^n exp(r) with r = x - n ln 2 in two steps; the polynomial is a minimax fit on |r| <= ln(2) / 2.
SCOUT_INLINE Vec exp_negative(Vec x) {
    constexpr float least = -87.33654f, round = 12582912.0f;
    Vec y = larger(x, splat(least));
    Vec shifted = y * 1.44269504f + round;
    Vec n = shifted - round;
    Vec r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec g = ((((1.38147e-3f * r + 8.36871e-3f) * r + 4.166839e-2f) * r + 0.16666521f) * r + 0.49999994f);
    Vec result = Vec(Bits(r * r * g + r + 1.0f) + (Bits(shifted) << 23));
    return x < splat(least) ? Vec{} : result;
}

// 2 W channels of a row, widened. Where `interleaved`, `even` holds channels 0, 2, 4, ... and `odd` 1, 3, 5, ...;
// else `even` holds the first W and `odd` the last W. Which one is free to choose: a dot product has no order.
struct Pair {
    Vec even, odd;
};

template <class T>
struct Row;

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <>
struct Row<float> {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Pair load(const float* p) { return {::load(p), ::load(p + W)}; }
};

template <>
struct Row<BFloat16> {
    static constexpr bool interleaved = true;
    static SCOUT_INLINE Pair load(const BFloat16* p) {
        Bits x = load_bits(p);
        return {Vec(x << 16), Vec(x & 0xffff0000u)};
    }
};

#if defined(__AVX512F__)
template <>
struct Row<Float16> {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { 
        return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
    }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#elif defined(__F16C__)
template <>
struct Row<Float16> {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#elif defined(__aarch64__)
template <>
struct Row<Float16> {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { return Vec(vcvt_f32_f16(vld1_f16((const __fp16*)p))); }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#else
template <>
struct Row<Float16> {
    static constexpr bool interleaved = true;
    // The exponent moves from bias 15 to 127 by a product that is exact for subnormals too; inf and NaN are kept.
    static SCOUT_INLINE Vec widen(Bits x) {
        Vec finite = Vec((x & 0x7fffu) << 13) * 0x1p112f;
        Bits special = Bits((x & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        return Vec(Bits(finite) | special | (x & 0x8000u) << 16);
    }
    static SCOUT_INLINE Pair load(const Float16* p) {
        Bits x = load_bits(p);
        return {widen(x & 0xffffu), widen(x >> 16)};
    }
};
#endif

// The last n < 2 W channels of a row, followed by zeros.
template <class T>
SCOUT_INLINE Pair load_tail(const T* p, int64_t n) {
    alignas(64) T channels[2 * W] = {};
#if defined(__AVX512BW__)
    for (int64_t at = 0; at < 2 * W; at += 64 / sizeof(T)) {
        const int64_t bytes = (n - at) * int64_t(sizeof(T));
        const uint64_t mask = bytes >= 64 ? ~uint64_t(0) : bytes > 0 ? (uint64_t(1) << bytes) - 1 : 0;
        _mm512_store_si512(channels + at, _mm512_maskz_loadu_epi8(mask, p + at));
    }
#else
    __builtin_memcpy(channels, p, n * sizeof(T));
#endif
    return Row<T>::load(channels);
}

// Channels First, First + 2, First + 4, ... of 2 W in order.
template <int First, int... I>
SCOUT_INLINE Vec every_other(Pair x, Lanes<I...>) {
    return __builtin_shufflevector(x.even, x.odd, (2 * I + First)...);
}

// Which channel stands at position i of a packed row.
template <class T>
constexpr int64_t channel(int64_t i) {
    int64_t base = i / (2 * W) * (2 * W), lane = i % (2 * W);
    return base + (Row<T>::interleaved ? lane % W * 2 + lane / W : lane);
}

}  // namespace
