// How GGUF keeps weights in few bits: the codes of a panel of 256 columns, and the scales of its chunks of 16 columns.
//
// A number is scale * code + least, with codes from 0 up. In every kind, one field of each of 16 bytes is a chunk. A
// panel is taken in steps of a few vectors of codes:
//
//     kBlock, kBytes        columns and bytes of a stored block
//     kSteps, kUnits        steps of a panel, and vectors of codes in a step
//     kShared               so many vectors, one after the other, have one scale in each lane
//     kRun                  codes in a vector that follow one another in the row: a chunk, or half of one
//     kBits                 8 where codes are above 63
//     chunk(v, u, i)        the chunk of run i of vector u in step v; of half chunks, vector u has those of u % 2
//     numbers(at, n)        scales and least numbers, each of a chunk
//     codes(at, v, out)     the vectors of step v
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
    for (int i = 0; i < kChunks; ++i) out[i / W][i % W] = float(T(x[i]));
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

// Kinds of 32 columns a block: codes 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
template <int BYTES>
struct BlocksOf32 {
    static constexpr int kBlock = 32, kBytes = BYTES, kBits = 4, kRun = 16;
    static constexpr int kUnits = 2, kShared = 2, kSteps = 8 / kVectorPieces;
    static constexpr int chunk(int v, int u, int i) { return 2 * (v * kVectorPieces + i) + u; }
    static SCOUT_INLINE const uint8_t* block(const uint8_t* at, int v) { return at + v * kVectorPieces * BYTES; }
    static SCOUT_INLINE void nibbles(const uint8_t* at, int v, int offset, Bits out[2]) {
        const Bits x = load_pieces(block(at, v) + offset, BYTES);
        out[0] = plane<4>(x, 0), out[1] = plane<4>(x, 1);
    }
};

struct Q4_0 : BlocksOf32<18> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_halves(at, kBytes, n.scale), centre(n, 8); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) { nibbles(at, v, 2, out); }
};

struct Q4_1 : BlocksOf32<20> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        widen_halves(at, kBytes, n.scale), widen_halves(at + 2, kBytes, n.least);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) { nibbles(at, v, 4, out); }
};

struct Q5_0 : BlocksOf32<22> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_halves(at, kBytes, n.scale), centre(n, 16); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles(at, v, 6, out);
        for (int p = 0; p < 2; ++p) out[p] = with_fifth(out[p], block(at, v) + 2, kBytes, p);
    }
};

struct Q5_1 : BlocksOf32<24> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        widen_halves(at, kBytes, n.scale), widen_halves(at + 2, kBytes, n.least);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles(at, v, 8, out);
        for (int p = 0; p < 2; ++p) out[p] = with_fifth(out[p], block(at, v) + 4, kBytes, p);
    }
};

struct Q8_0 : BlocksOf32<34> {
    static constexpr int kBits = 8;
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_halves(at, kBytes, n.scale), centre(n, 128); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        for (int p = 0; p < 2; ++p) out[p] = load_pieces(block(at, v) + 2 + 16 * p, kBytes) ^ 0x80808080u;
    }
};

struct IQ4_NL : Q4_0 {
    static constexpr int kBits = 8;
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_halves(at, kBytes, n.scale), centre(n, 128); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles(at, v, 2, out);
        for (int p = 0; p < 2; ++p) out[p] = look_up(out[p]);
    }
};

// Fields of two bits: those of a plane of 32 bytes are 32 columns.
template <int BYTES>
struct TwoBits {
    static constexpr int kBlock = 256, kBytes = BYTES, kBits = 4, kRun = 8;
    static constexpr int kUnits = 4, kShared = 2, kSteps = 4 / kVectorPieces;
    static constexpr int chunk(int v, int u, int i) {
        const int piece = v * kVectorPieces + i / 2, plane = u / 2 * 2 + i % 2;
        return piece / 2 * 8 + 2 * plane + piece % 2;
    }
    static SCOUT_INLINE void zip(Bits out[4]) { zip_halves(out[0], out[1]), zip_halves(out[2], out[3]); }
};

struct Q2_K : TwoBits<84> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        const Piece x = read<Piece>(at);
        widen_bytes<uint8_t>(x & 15, n.scale), widen_bytes<uint8_t>(x >> 4, n.least);
        const float scale = half(at + 80), least = half(at + 82);
        for (int i = 0; i < kChunks / W; ++i) n.scale[i] *= scale, n.least[i] *= -least;
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[4]) {
        const Bits x = load_bits(at + 16 + 4 * W * v);
        for (int p = 0; p < 4; ++p) out[p] = plane<2>(x, p);
        zip(out);
    }
};

struct Q3_K : TwoBits<110> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        typedef uint32_t Four __attribute__((vector_size(16)));
        const uint32_t a = read<uint32_t>(at + 96), b = read<uint32_t>(at + 100), high = read<uint32_t>(at + 104);
        const Four low = Four{a, b, a >> 4, b >> 4} & 0x0f0f0f0fu;
        const Four top = Four{high, high >> 2, high >> 4, high >> 6} & 0x03030303u;
        widen_bytes<uint8_t>(Piece(low | top << 4), n.scale);
        const float scale = half(at + 108);
        for (int i = 0; i < kChunks / W; ++i) n.scale[i] = (n.scale[i] - 32) * scale;
        centre(n, 4);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[4]) {
        const Bits x = load_bits(at + 32 + 4 * W * v);
        const Bits third = load_for_pairs(at, v) >> 4 * pair_number(v);
        for (int p = 0; p < 4; ++p) out[p] = plane<2>(x, p) | plane<1>(third, p) << 2;
        zip(out);
    }
};

// Kinds of 8 scales and 8 least numbers, six bits each. Those of 32 columns are one plane of 32 bytes.
template <int BYTES>
struct SixBitScales {
    static constexpr int kBlock = 256, kBytes = BYTES, kBits = 4, kRun = 16;
    static constexpr int kUnits = 4, kShared = 2, kSteps = 4 / kVectorPieces;
    static constexpr int chunk(int v, int u, int i) { return (v * kVectorPieces + i) * 4 + u; }
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        const uint32_t a = read<uint32_t>(at + 4), b = read<uint32_t>(at + 8), c = read<uint32_t>(at + 12);
        const auto eight = [](uint32_t low, uint32_t high) { return twice(uint64_t(high) << 32 | low); };
        widen_bytes<uint8_t>(eight(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)), n.scale);
        widen_bytes<uint8_t>(eight(b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)), n.least);
        const float scale = half(at), least = half(at + 2);
        for (int i = 0; i < kChunks / W; ++i) n.scale[i] *= scale, n.least[i] *= -least;
    }
};

struct Q4_K : SixBitScales<144> {
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[4]) {
        Bits x[2];
        load_even_odd(at + 16 + 8 * W * v, x);
        for (int u = 0; u < 4; ++u) out[u] = plane<4>(x[u % 2], u / 2);
    }
};

struct Q5_K : SixBitScales<176> {
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[4]) {
        Bits x[2];
        load_even_odd(at + 48 + 8 * W * v, x);
        const Bits shift = 2 * (Bits(lane_numbers(AllLanes())) / 4u + uint32_t(v * kVectorPieces));
        for (int j = 0; j < 2; ++j) {
            const Bits fifth = load_pieces(at + 16 + 16 * j, 0) >> shift;
            for (int p = 0; p < 2; ++p) out[2 * p + j] = plane<4>(x[j], p) | plane<1>(fifth, p) << 4;
        }
    }
};

struct Q6_K {
    static constexpr int kBlock = 256, kBytes = 210, kBits = 4, kRun = 8;
    static constexpr int kUnits = 2, kShared = 2, kSteps = 8 / kVectorPieces;
    static constexpr int chunk(int v, int, int i) {
        const int piece = v * kVectorPieces + i / 2;
        return piece / 4 * 8 + 4 * (i % 2) + piece % 4;
    }
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        widen_bytes<int8_t>(read<Piece>(at + 192), n.scale);
        const float scale = half(at + 208);
        for (int i = 0; i < kChunks / W; ++i) n.scale[i] *= scale;
        centre(n, 32);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        const Bits x = load_bits(at + 4 * W * v);
        const Bits high = load_for_pairs(at + 128 + v * W / 16 * 32, v) >> 2 * (pair_number(v) & 1);
        for (int p = 0; p < 2; ++p) out[p] = plane<4>(x, p) | plane<2>(high, 2 * p) << 4;
        zip_halves(out[0], out[1]);
    }
};

struct IQ4_XS {
    static constexpr int kBlock = 256, kBytes = 136, kBits = 8, kRun = 16;
    static constexpr int kUnits = 2, kShared = 2, kSteps = 8 / kVectorPieces;
    static constexpr int chunk(int v, int u, int i) { return 2 * (v * kVectorPieces + i) + u; }
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        uint64_t high = read<uint16_t>(at + 2), low = read<uint32_t>(at + 4);  // 2 and 4 bits of each of 8 scales
        high = (high | high << 24) & 0x000000ff000000ff, high = (high | high << 12) & 0x000f000f000f000f;
        high = (high | high << 6) & 0x0303030303030303;
        low = (low | low << 16) & 0x0000ffff0000ffff, low = (low | low << 8) & 0x00ff00ff00ff00ff;
        low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f;
        widen_bytes<uint8_t>(twice(low | high << 4), n.scale);
        const float scale = half(at);
        for (int i = 0; i < kChunks / W; ++i) n.scale[i] = (n.scale[i] - 32) * scale;
        centre(n, 128);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        const Bits x = load_bits(at + 8 + 4 * W * v);
        for (int p = 0; p < 2; ++p) out[p] = look_up(plane<4>(x, p));
    }
};

}  // namespace
