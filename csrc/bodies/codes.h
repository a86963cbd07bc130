// Products of codes of a few bits with 8-bit integers, four of them in each lane.
#pragma once

#include "bodies/tiles.h"

namespace {

constexpr float kRound = 12582912;  // added to a number below 2^22, it leaves the nearest integer in the low bits

// sum + a[0] b[0] + ... + a[3] b[3] in every lane of four bytes: a in 0..63, b in -128..127.
SCOUT_INLINE IntVec dot4(IntVec sum, Bits a, IntVec b) {
#if defined(__AVX512VNNI__)
    return IntVec(_mm512_dpbusd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16(__m512i(a), __m512i(b));
    return sum + IntVec(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(__m256i(a), __m256i(b));
    return sum + IntVec(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    typedef int16_t Shorts __attribute__((vector_size(4 * W)));
    const Shorts even = Shorts(a & 0x00ff00ffu) * (Shorts(b) << 8 >> 8);
    const Shorts odd = Shorts(a >> 8 & 0x00ff00ffu) * (Shorts(b) >> 8);
    const IntVec pairs = IntVec(even + odd);
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
#endif
}

// sum + a[0] b[0] + ... + a[3] b[3] in every lane of four bytes: a in 0..63, or 0..255 where BITS is 8,
// b in -128..127.
template <int BITS>
SCOUT_INLINE IntVec dot_codes(IntVec sum, Bits a, IntVec b) {
#if !defined(__AVX512VNNI__)
    if constexpr (BITS == 8) {  // a sum of two products would not fit 16 bits, as dot4 has it
        typedef int16_t Shorts __attribute__((vector_size(4 * W)));
        const Bits a_even = a & 0x00ff00ffu, a_odd = a >> 8 & 0x00ff00ffu;
        const Shorts b_even = Shorts(b) << 8 >> 8, b_odd = Shorts(b) >> 8;
#if defined(__AVX512BW__)
        return sum + IntVec(_mm512_madd_epi16(__m512i(a_even), __m512i(b_even))) +
               IntVec(_mm512_madd_epi16(__m512i(a_odd), __m512i(b_odd)));
#elif defined(__AVX2__)
        return sum + IntVec(_mm256_madd_epi16(__m256i(a_even), __m256i(b_even))) +
               IntVec(_mm256_madd_epi16(__m256i(a_odd), __m256i(b_odd)));
#else
        const IntVec even = IntVec(Shorts(a_even) * b_even), odd = IntVec(Shorts(a_odd) * b_odd);
        return sum + (even << 16 >> 16) + (even >> 16) + (odd << 16 >> 16) + (odd >> 16);
#endif
    }
#endif
    return dot4(sum, a, b);
}

// Stores the lowest byte of every lane.
SCOUT_INLINE void store_bytes(int8_t* p, Vec x) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8(0xffff, __m512i(x)));
#elif defined(__AVX2__)
    const __m256i lowest = _mm256_set1_epi32(0x0c080400), each = _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(__m256i(x), lowest), each);
    _mm_storel_epi64((__m128i*)p, _mm256_castsi256_si128(bytes));
#else
    for (int i = 0; i < W; ++i) p[i] = int8_t(Bits(x)[i]);
#endif
}

// The nearest integers of four vectors in order, a byte each.   x: -127 to 127.
SCOUT_INLINE IntVec whole_bytes(const Vec x[4]) {
#if defined(__AVX512BW__)
    __m512i whole[4];
    for (int i = 0; i < 4; ++i) whole[i] = _mm512_cvtps_epi32(__m512(x[i]));
    const __m512i low = _mm512_packs_epi32(whole[0], whole[1]), high = _mm512_packs_epi32(whole[2], whole[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return IntVec(_mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
#else
    int8_t bytes[4 * W];
    for (int i = 0; i < 4; ++i) store_bytes(bytes + i * W, x[i] + kRound);
    return IntVec(load_bits(bytes));
#endif
}

// The first n words of p, W at most, followed by zeros.
SCOUT_INLINE Bits load_words(const uint8_t* p, int64_t n) {
    if (n >= W) return load_bits(p);
    uint32_t words[W] = {};
    __builtin_memcpy(words, p, n * sizeof(uint32_t));
    return load_bits(words);
}

// Channels c to c + 2 W of a row in order, zeros beyond its end.
template <class T>
SCOUT_INLINE Pair channels(const T* row, int64_t c, int64_t dim) {
    const Pair x = c + 2 * W <= dim ? Loader<T>::load(row + c) : c < dim ? load_tail(row + c, dim - c) : Pair{};
    if constexpr (Loader<T>::interleaved) return merged(x, AllLanes());
    return x;
}

// The channels of a row in order, as floats.
template <class T>
SCOUT_INLINE void widen(const T* row, int64_t dim, float* out) {
    for (int64_t c = 0; c < dim; c += 2 * W) {
        const Pair x = channels(row, c, dim);
        store(out + c, x.even);
        store(out + c + W, x.odd);
    }
}

}  // namespace
