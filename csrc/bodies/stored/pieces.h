// Pieces of stored blocks: bytes, fields of a few bits, and float16 numbers, taken out of where they are.
#pragma once

#include "bodies/codes.h"

namespace {

constexpr int kChunks = 16, kChunkColumns = 16;  // chunks of a panel, and columns of a chunk
constexpr int kVectorPieces = W / 4;

struct Numbers {
    Vec scale[kChunks / W], least[kChunks / W];
};

typedef uint8_t Piece __attribute__((vector_size(16)));
typedef uint64_t Words2 __attribute__((vector_size(4 * W)));

template <class T>
SCOUT_INLINE T read(const uint8_t* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

// Pieces of 16 bytes, `stride` bytes apart.
SCOUT_INLINE Bits load_pieces(const uint8_t* p, int stride) {
#if defined(__AVX512F__)
    const auto piece = [=](int i) { return _mm_loadu_si128((const __m128i*)(p + i * stride)); };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(piece(0)), piece(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(piece(2)), piece(3), 1);
    return Bits(_mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1));
#elif defined(__AVX2__)
    const __m128i first = _mm_loadu_si128((const __m128i*)p), second = _mm_loadu_si128((const __m128i*)(p + stride));
    return Bits(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
#else
    static_assert(W == 4);
    return (void)stride, load_bits(p);
#endif
}

#if defined(__AVX512BW__)
// 32 words of 16 bits: lane i is word At::word(i) of the 64 bytes at a and the 64 bytes at b.
template <class At, int... I>
SCOUT_INLINE __m512i gather_words(const uint8_t* a, const uint8_t* b, Lanes<I...>) {
    typedef uint16_t Words __attribute__((vector_size(64)));
    const Words index = {uint16_t(At::word(I))...};
    return _mm512_permutex2var_epi16(__m512i(load_bits(a)), __m512i(index), __m512i(load_bits(b)));
}

// Where the pieces of four blocks are: those of two blocks in the first 64 bytes, those of the others in the last.
template <int STRIDE, int OFFSET>
struct PiecesAt {
    static constexpr int kSecond = 4 * STRIDE - 64;
    static constexpr bool kFits = STRIDE + OFFSET + 16 <= 64 && kSecond <= 2 * STRIDE + OFFSET;
    static constexpr int word(int i) {
        const int byte = i / 8 * STRIDE + OFFSET + i % 8 * 2;
        return i < 16 ? byte / 2 : 32 + (byte - kSecond) / 2;
    }
};

// Where the first two words of eight blocks are, each twice: the first ones of all, then the second ones.
template <int STRIDE>
struct NumbersAt {
    static constexpr int kSecond = 4 * STRIDE;
    static constexpr bool kFits = 3 * STRIDE + 4 <= 64 && 64 <= kSecond;
    static constexpr int word(int i) {
        const int block = i % 16 / 2;
        return (block < 4 ? block * STRIDE : 64 + (block - 4) * STRIDE) / 2 + i / 16;
    }
};
#endif

// The 16 bytes from OFFSET on of each of W / 4 blocks of STRIDE bytes.
template <int STRIDE, int OFFSET>
SCOUT_INLINE Bits load_block_pieces(const uint8_t* blocks) {
#if defined(__AVX512BW__)
    using At = PiecesAt<STRIDE, OFFSET>;
    if constexpr (At::kFits) return Bits(gather_words<At>(blocks, blocks + At::kSecond, CountTo<32>::type()));
#endif
    return load_pieces(blocks + OFFSET, STRIDE);
}

// The part of 32 bytes, which belong to every two pieces, that belongs to the pieces from v * W / 4 on.
SCOUT_INLINE Bits load_for_pairs(const uint8_t* p, int v) {
#if defined(__AVX512F__)
    return (void)v, Bits(_mm512_maskz_broadcast_i64x4(0xff, _mm256_loadu_si256((const __m256i*)p)));
#else
    return load_bits(p + (W == 4 ? 16 * (v % 2) : 0));
#endif
}

template <int First, int... I>
SCOUT_INLINE Bits zipped(Words2 a, Words2 b, Lanes<I...>) {
    return Bits(__builtin_shufflevector(a, b, (I / 2 * 2 + First + I % 2 * (W / 2))...));
}

// Codes of chunks a0, a1, ... and b0, b1, ... as those of the first halves of a0, b0, a1, b1, ..., and the second ones.
SCOUT_INLINE void zip_halves(Bits& a, Bits& b) {
    const Words2 x = Words2(a), y = Words2(b);
    a = zipped<0>(x, y, CountTo<W / 2>::type()), b = zipped<1>(x, y, CountTo<W / 2>::type());
}

// 8 W bytes: the pieces of even number, then those of odd number.
SCOUT_INLINE void load_even_odd(const uint8_t* p, Bits out[2]) {
#if defined(__AVX512F__)
    const __m512i a = __m512i(load_bits(p)), b = __m512i(load_bits(p + 64));
    out[0] = Bits(_mm512_maskz_shuffle_i32x4(0xffff, a, b, 0x88));
    out[1] = Bits(_mm512_maskz_shuffle_i32x4(0xffff, a, b, 0xdd));
#else
    out[0] = load_pieces(p, 32), out[1] = load_pieces(p + 16, 32);
#endif
}

// In each lane, the number of the pair of pieces that it belongs to, counted from the panel's first.
SCOUT_INLINE Bits pair_number(int v) { return (Bits(lane_numbers(AllLanes())) + uint32_t(v * W)) / 8u; }

// Plane p of fields of BITS bits.
template <int BITS>
SCOUT_INLINE Bits plane(Bits x, int p) {
    return x >> uint32_t(BITS * p) & ((1u << BITS) - 1) * 0x01010101u;
}

// 16 bytes as floats, T uint8_t or int8_t.
template <class T>
SCOUT_INLINE void widen_bytes(Piece x, Vec out[kChunks / W]) {
#if defined(__AVX512F__)
    const __m512i wide = T(-1) < 0 ? _mm512_maskz_cvtepi8_epi32(0xffff, __m128i(x))
                                   : _mm512_maskz_cvtepu8_epi32(0xffff, __m128i(x));
    out[0] = Vec(_mm512_maskz_cvtepi32_ps(0xffff, wide));
#elif defined(__AVX2__)
    for (int i = 0; i < 2; ++i) {
        const __m128i half = i ? _mm_srli_si128(__m128i(x), 8) : __m128i(x);
        out[i] = Vec(_mm256_cvtepi32_ps(T(-1) < 0 ? _mm256_cvtepi8_epi32(half) : _mm256_cvtepu8_epi32(half)));
    }
#else
    for (int i = 0; i < kChunks / W; ++i) {
        Vec numbers = {};
        for (int l = 0; l < W; ++l) numbers[l] = float(T(x[i * W + l]));
        out[i] = numbers;
    }
#endif
}

SCOUT_INLINE Piece twice(uint64_t eight) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    const Piece x = Piece(Two{eight, 0});
    return __builtin_shufflevector(x, x, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
}

SCOUT_INLINE float half(const uint8_t* p) {
#if defined(__F16C__)
    return _cvtsh_ss(read<uint16_t>(p));
#else
    return widen_half(Bits{} + read<uint16_t>(p))[0];
#endif
}

// The float16 numbers of eight blocks, `stride` bytes apart, each twice.
SCOUT_INLINE void widen_halves(const uint8_t* p, int stride, Vec out[kChunks / W]) {
    uint16_t x[8];
    for (int i = 0; i < 8; ++i) x[i] = read<uint16_t>(p + i * stride);
#if defined(__F16C__)
    const __m128i halves = _mm_setr_epi16(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]);
    const __m128i low = _mm_unpacklo_epi16(halves, halves), high = _mm_unpackhi_epi16(halves, halves);
#if defined(__AVX512F__)
    out[0] = Vec(_mm512_maskz_cvtph_ps(0xffff, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1)));
#else
    out[0] = Vec(_mm256_cvtph_ps(low)), out[1] = Vec(_mm256_cvtph_ps(high));
#endif
#else
    for (int i = 0; i < kChunks / W; ++i) {
        Bits bits;
        for (int l = 0; l < W; ++l) bits[l] = x[(i * W + l) / 2];
        out[i] = widen_half(bits);
    }
#endif
}

// What eight blocks of STRIDE bytes begin with: a scale each, and then, if there is LEAST, a least number.
template <int STRIDE, bool LEAST>
SCOUT_INLINE void widen_numbers(const uint8_t* blocks, Numbers& n) {
#if defined(__AVX512BW__)
    using At = NumbersAt<STRIDE>;
    if constexpr (At::kFits) {
        const __m512i words = gather_words<At>(blocks, blocks + At::kSecond, CountTo<32>::type());
        n.scale[0] = Vec(_mm512_maskz_cvtph_ps(0xffff, _mm512_castsi512_si256(words)));
        if (LEAST) n.least[0] = Vec(_mm512_maskz_cvtph_ps(0xffff, _mm512_maskz_extracti64x4_epi64(0xf, words, 1)));
        return;
    }
#endif
    widen_halves(blocks, STRIDE, n.scale);
    if (LEAST) widen_halves(blocks + 2, STRIDE, n.least);
}

// Numbers whose codes have an offset.
SCOUT_INLINE void centre(Numbers& n, float offset) {
    for (int i = 0; i < kChunks / W; ++i) n.least[i] = n.scale[i] * -offset;
}

// Adds 16 to the codes of plane p whose bit is set in the words of W / 4 blocks, `stride` bytes apart.
SCOUT_INLINE Bits with_fifth(Bits codes, const uint8_t* words, int stride, int p) {
#if defined(__AVX512BW__)
    uint64_t mask = 0;
    for (int i = 0; i < 4; ++i) mask |= uint64_t(read<uint16_t>(words + i * stride + 2 * p)) << 16 * i;
    return Bits(_mm512_mask_add_epi8(__m512i(codes), mask, __m512i(codes), _mm512_set1_epi8(16)));
#else
    Bits four;  // bits of four codes, in each lane
    for (int l = 0; l < W; ++l)
        four[l] = uint32_t(read<uint16_t>(words + l / 4 * stride + 2 * p)) >> 4 * (l % 4) & 15;
    return codes | (four * 0x00204081u & 0x01010101u) << 4;
#endif
}

// The numbers that codes of IQ4 stand for, plus 128.
constexpr Piece kUneven = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

SCOUT_INLINE Bits look_up(Bits codes) {
#if defined(__AVX512BW__)
    return Bits(_mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(0xffff, __m128i(kUneven)), __m512i(codes)));
#elif defined(__AVX2__)
    return Bits(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(__m128i(kUneven)), __m256i(codes)));
#else
    uint8_t bytes[4 * W];
    __builtin_memcpy(bytes, &codes, sizeof codes);
    for (uint8_t& byte : bytes) byte = kUneven[byte];
    return load_bits(bytes);
#endif
}

}  // namespace
