// The channels of a row in any dtype, widened to floats: 2 W in the order of memory, or the words of W rows at once.
#pragma once

#include "bodies/vector.h"

namespace {

// 2 W channels of a row, widened. Where `interleaved`, `even` holds channels 0, 2, 4, ... and `odd` 1, 3, 5, ...;
// else `even` holds the first W and `odd` the last W. A dtype
// uses the order that is faster to load: a dot product has no order.
struct Pair {
    Vec even, odd;
};

// How a row of this dtype is loaded and widened.
template <class T>
struct Loader;

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <>
struct Loader<float> {
    static constexpr bool interleaved = false;
    static constexpr int per_word = 1;
    static SCOUT_INLINE void widen_words(Vec x, Vec channels[1]) { channels[0] = x; }
    static SCOUT_INLINE Pair load(const float* p) { return {::load(p), ::load(p + W)}; }
};

template <>
struct Loader<BFloat16> {
    static constexpr bool interleaved = true;
    static constexpr int per_word = 2;
    static SCOUT_INLINE void widen_words(Vec x, Vec channels[2]) {
        channels[0] = Vec(Bits(x) << 16), channels[1] = Vec(Bits(x) & 0xffff0000u);
    }
    static SCOUT_INLINE Pair load(const BFloat16* p) {
        Bits x = load_bits(p);
        return {Vec(x << 16), Vec(x & 0xffff0000u)};
    }
};

// A half in the low 16 bits of each lane to a float: the exponent moves from bias 15 to 127 by a product that is exact
// for subnormals too; inf and NaN are kept.
SCOUT_INLINE Vec widen_half(Bits x) {
#if defined(__AVX512F__)
    return _mm512_maskz_cvtph_ps(0xffff, _mm512_maskz_cvtepi32_epi16(0xffff, __m512i(x)));
#else
    const Vec finite = Vec((x & 0x7fffu) << 13) * 0x1p112f;
    const Bits special = Bits((x & 0x7c00u) == 0x7c00u) & 0x7f800000u;
    return Vec(Bits(finite) | special | (x & 0x8000u) << 16);
#endif
}

struct HalfWords {
    static constexpr int per_word = 2;
    static SCOUT_INLINE void widen_words(Vec x, Vec channels[2]) {
        channels[0] = widen_half(Bits(x) & 0xffffu), channels[1] = widen_half(Bits(x) >> 16);
    }
};

#if defined(__AVX512F__)
template <>
struct Loader<Float16> : HalfWords {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { 
        return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
    }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#elif defined(__F16C__)
template <>
struct Loader<Float16> : HalfWords {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#elif defined(__aarch64__)
template <>
struct Loader<Float16> : HalfWords {
    static constexpr bool interleaved = false;
    static SCOUT_INLINE Vec widen(const Float16* p) { return Vec(vcvt_f32_f16(vld1_f16((const __fp16*)p))); }
    static SCOUT_INLINE Pair load(const Float16* p) { return {widen(p), widen(p + W)}; }
};
#else
template <>
struct Loader<Float16> : HalfWords {
    static constexpr bool interleaved = true;
    static SCOUT_INLINE Pair load(const Float16* p) {
        Bits x = load_bits(p);
        return {widen_half(x & 0xffffu), widen_half(x >> 16)};
    }
};
#endif

// The nearest halves of W floats; of two that are as near, the even one.
SCOUT_INLINE void narrow_to_half(Vec x, uint16_t* to) {
#if defined(__AVX512F__)
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(0xffff, __m512(x), nearest));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_f16((__fp16*)to, vcvt_f16_f32(float32x4_t(x)));
#else
    const Bits size = Bits(x) & 0x7fffffffu, none = {};
    const Bits normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
    const Bits subnormal = Bits(Vec(size) + 0.5f) - 0x3f000000u;  // the sum has units of 2^-24
    Bits half = size < none + 0x38800000u ? subnormal : normal;
    half = size < none + 0x47800000u ? half : none + 0x7c00u;
    half = size > none + 0x7f800000u ? none + 0x7e00u : half;
    half |= Bits(x) >> 16 & 0x8000u;
    for (int i = 0; i < W; ++i) to[i] = uint16_t(half[i]);
#endif
}

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
    return Loader<T>::load(channels);
}

// The first n channels of a row, fewer than fill a vector of words, followed by zeros.
template <class T>
SCOUT_INLINE Vec load_words(const T* p, int64_t n) {
    alignas(64) T channels[2 * W] = {};
    __builtin_memcpy(channels, p, n * sizeof(T));
    return load((const float*)channels);
}

// Channels First, First + 2, First + 4, ... of 2 W in order.
template <int First, int... I>
SCOUT_INLINE Vec every_other(Pair x, Lanes<I...>) {
    return __builtin_shufflevector(x.even, x.odd, (2 * I + First)...);
}

// The reverse of `every_other`: 2 W channels in order, from the even ones and the odd ones.
template <int... I>
SCOUT_INLINE Pair merged(Pair x, Lanes<I...>) {
    return {__builtin_shufflevector(x.even, x.odd, (I / 2 + I % 2 * W)...),
            __builtin_shufflevector(x.even, x.odd, (W / 2 + I / 2 + I % 2 * W)...)};
}

// Which channel stands at position i of a packed row.
template <class T>
constexpr int64_t channel(int64_t i) {
    int64_t base = i / (2 * W) * (2 * W), lane = i % (2 * W);
    return base + (Loader<T>::interleaved ? lane % W * 2 + lane / W : lane);
}

}  // namespace
