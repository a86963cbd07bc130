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
//     kScaled               columns that have one scale: a chunk, or two
//     chunk(v, u, i)        the chunk of run i of vector u in step v; of half chunks, vector u has those of u % 2
//     numbers(at, n)        scales and least numbers, each of a chunk
//     codes(at, v, out)     the vectors of step v
#pragma once

#include "bodies/stored/pieces.h"

namespace {

// Kinds of 32 columns a block: codes 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones.
template <int BYTES>
struct BlocksOf32 {
    static constexpr int kBlock = 32, kBytes = BYTES, kBits = 4, kRun = 16, kScaled = 32;
    static constexpr int kUnits = 2, kShared = 2, kSteps = 8 / kVectorPieces;
    static constexpr int chunk(int v, int u, int i) { return 2 * (v * kVectorPieces + i) + u; }
    static SCOUT_INLINE const uint8_t* block(const uint8_t* at, int v) { return at + v * kVectorPieces * BYTES; }
    template <int OFFSET>
    static SCOUT_INLINE void nibbles(const uint8_t* at, int v, Bits out[2]) {
        const Bits x = load_block_pieces<BYTES, OFFSET>(block(at, v));
        out[0] = plane<4>(x, 0), out[1] = plane<4>(x, 1);
    }
};

struct Q4_0 : BlocksOf32<18> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_numbers<kBytes, false>(at, n), centre(n, 8); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) { nibbles<2>(at, v, out); }
};

struct Q4_1 : BlocksOf32<20> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        widen_numbers<kBytes, true>(at, n);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) { nibbles<4>(at, v, out); }
};

struct Q5_0 : BlocksOf32<22> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_numbers<kBytes, false>(at, n), centre(n, 16); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles<6>(at, v, out);
        for (int p = 0; p < 2; ++p) out[p] = with_fifth(out[p], block(at, v) + 2, kBytes, p);
    }
};

struct Q5_1 : BlocksOf32<24> {
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) {
        widen_numbers<kBytes, true>(at, n);
    }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles<8>(at, v, out);
        for (int p = 0; p < 2; ++p) out[p] = with_fifth(out[p], block(at, v) + 4, kBytes, p);
    }
};

struct Q8_0 : BlocksOf32<34> {
    static constexpr int kBits = 8;
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_numbers<kBytes, false>(at, n), centre(n, 128); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        for (int p = 0; p < 2; ++p) out[p] = load_pieces(block(at, v) + 2 + 16 * p, kBytes) ^ 0x80808080u;
    }
};

struct IQ4_NL : Q4_0 {
    static constexpr int kBits = 8;
    static SCOUT_INLINE void numbers(const uint8_t* at, Numbers& n) { widen_numbers<kBytes, false>(at, n), centre(n, 128); }
    static SCOUT_INLINE void codes(const uint8_t* at, int v, Bits out[2]) {
        nibbles<2>(at, v, out);
        for (int p = 0; p < 2; ++p) out[p] = look_up(out[p]);
    }
};

// Fields of two bits: those of a plane of 32 bytes are 32 columns.
template <int BYTES>
struct TwoBits {
    static constexpr int kBlock = 256, kBytes = BYTES, kBits = 4, kRun = 8, kScaled = 16;
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
    static constexpr int kBlock = 256, kBytes = BYTES, kBits = 4, kRun = 16, kScaled = 32;
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
    static constexpr int kBlock = 256, kBytes = 210, kBits = 4, kRun = 8, kScaled = 16;
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
    static constexpr int kBlock = 256, kBytes = 136, kBits = 8, kRun = 16, kScaled = 32;
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
