// Weights in stored blocks as numbers.
#pragma once

#include "bodies/stored/products.h"

namespace {

SCOUT_INLINE void write_vector(float* to, Vec x) { store(to, x); }

// Rounds to the nearest, halves to even.
SCOUT_INLINE void write_vector(BFloat16* to, Vec x) {
    const Bits rounded = Bits(x) + 0x7fffu + (Bits(x) >> 16 & 1u);
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(0xffff, __m512i(rounded >> 16)));
#else
    for (int i = 0; i < W; ++i) to[i].bits = uint16_t(rounded[i] >> 16);
#endif
}

// The first `chunks` chunks of a panel.
template <class K, class T>
SCOUT_INLINE void write_numbers(const uint8_t* panel, int64_t chunks, T* to) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    Numbers n;
    K::numbers(panel, n);
    float scales[kChunks], least[kChunks];
    __builtin_memcpy(scales, n.scale, sizeof scales);
    __builtin_memcpy(least, n.least, sizeof least);
    for (int v = 0; v < K::kSteps; ++v) {
        Bits vectors[K::kUnits];
        K::codes(panel, v, vectors);
        uint8_t codes[K::kUnits][4 * W];
        __builtin_memcpy(codes, vectors, sizeof codes);
        constexpr bool halves = K::kRun < kChunkColumns;
        for (int u = 0; u < K::kUnits; u += halves ? 2 : 1)
            for (int i = 0; i < 4 * W / K::kRun; ++i) {
                const int chunk = K::chunk(v, u, i);
                if (chunk >= chunks) continue;
                const uint8_t *first = codes[u] + i * K::kRun, *second = halves ? codes[u + 1] + i * 8 : first + 8;
                Vec numbers[kChunks / W];
                widen_bytes<uint8_t>(Piece(Two{read<uint64_t>(first), read<uint64_t>(second)}), numbers);
                for (int j = 0; j < kChunks / W; ++j)
                    write_vector(to + chunk * kChunkColumns + j * W, numbers[j] * scales[chunk] + least[chunk]);
            }
    }
}

// Lines as numbers, of which `out` has `width` a line.
template <class K, class T>
void expand_stored(const uint8_t* lines, int64_t count, int64_t width, void* out) {
    T* to = (T*)out;
    uint8_t last[kPanelBytes<K>];
    for (int64_t i = 0; i < count; ++i, lines += width / K::kBlock * K::kBytes)
        for (int64_t n = 0; n * kStoredPanel < width; ++n, to += kStoredPanel) {
            const int64_t left = width - n * kStoredPanel;
            write_numbers<K>(panel_of<K>(lines, n, width, last), left / kChunkColumns, to);
            if (left < kStoredPanel) to += left - kStoredPanel;
        }
}

}  // namespace
