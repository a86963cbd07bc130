// A thin layer over the compiler's vector types: W floats at a time, W set by the file that includes this.
//
// Included through instruction_sets/table.h alone. Everything is in an unnamed namespace and no standard template is
// used, so that no code built for one instruction set can be linked into another.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "bodies/kernels.h"

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

// The same 32 bits in every lane.
SCOUT_INLINE Vec splat_word(const float* p) {
#if defined(__AVX512F__)
    return _mm512_castsi512_ps(_mm512_set1_epi32(*(const int32_t*)p));
#else
    return splat(*p);
#endif
}

// x, kept in a register. The compiler would load it again for each use, and the loads would take longer than the
// products.
SCOUT_INLINE Vec in_register(Vec x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

// The larger of two numbers; b where one of them is NaN.
SCOUT_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(0xffff, __m512(a), __m512(b));
#else
    return a > b ? a : b;
#endif
}

SCOUT_INLINE Vec magnitude(Vec x) { return Vec(Bits(x) & 0x7fffffffu); }

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

template <class How, int... I>
SCOUT_INLINE void split(Vec& a, Vec& b, Lanes<I...>) {
    const Vec first = __builtin_shufflevector(a, b, How::index(I, 0)...);
    b = __builtin_shufflevector(a, b, How::index(I, 1)...);
    a = first;
}

// Transposes W vectors: afterwards x[i] holds lane transposed_lane(i) of each of them.
constexpr int transposed_lane(int i) { return i / 4 * 4 + i % 2 * 2 + i / 2 % 2; }

// One step of a transposition: folds the vectors whose numbers differ in the bit DISTANCE.
template <class How, int DISTANCE>
SCOUT_INLINE void split_all(Vec x[W]) {
    for (int first = 0; first < W; first += 2 * DISTANCE)
        for (int r = first; r < first + DISTANCE; ++r) split<How>(x[r], x[r + DISTANCE], AllLanes());
}

SCOUT_INLINE void transpose(Vec x[W]) {
    split_all<Unpack, 1>(x);
    split_all<Halves, 2>(x);
    if constexpr (W > 4) split_all<Quads, 4>(x);
    if constexpr (W > 8) split_all<Quads, 8>(x);
}

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

// The sums over lanes (or what `Join` makes of them) of W vectors in memory: lane i is that of vector i.
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

// The sums over lanes of N vectors, which do not depend on one another's places.
template <int N>
SCOUT_INLINE void sum_all(const Vec* x, float* out) {
    static_assert(N <= W);
    Vec quads[W / 4] = {};
    for (int i = 0; i < N; i += 4) {
        Vec four[4] = {};
        for (int j = 0; j < 4 && i + j < N; ++j) four[j] = x[i + j];
        quads[i / 4] = fold4(four);
    }
    const Vec sums = fold_quads(quads);
    __builtin_memcpy(out, &sums, N * sizeof(float));
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

// Whether a lane of x is above `limit`.
SCOUT_INLINE bool exceeds(Vec x, float limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#else
    return max_lane(x) > limit;
#endif
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

// exp(x) for x <= 0, relative error below 3e-7; 0 below the smallest normal result, and NaN for NaN.
// exp(x) = 2^n exp(r) with r = x - n ln 2 in two steps; the polynomial is a minimax fit on |r| <= ln(2) / 2.
SCOUT_INLINE Vec exp_negative(Vec x) {
    constexpr float least = -87.33654f, round = 12582912.0f;
    Vec y = larger(splat(least), x);
    Vec shifted = y * 1.44269504f + round;
    Vec n = shifted - round;
    Vec r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec g = ((((1.38147e-3f * r + 8.36871e-3f) * r + 4.166839e-2f) * r + 0.16666521f) * r + 0.49999994f);
    Vec result = r * r * g + r + 1.0f;
#if defined(__AVX512F__)
    const __mmask16 counts = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(least), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(counts, __m512(result), __m512(n));
#else
    result = Vec(Bits(result) + (Bits(shifted) << 23));
    return x < splat(least) ? Vec{} : result;
#endif
}

}  // namespace
