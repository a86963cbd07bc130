// Products of many rows, such as a prompt's, with weights in stored blocks.
//
// Rows are rounded as in products.h. A panel of some lines is laid out anew, once for all rows: a vector has the codes
// of four columns of each of W lines, and is multiplied with four columns of a row, the same in every lane.
#pragma once

#include "bodies/stored/products.h"

#if defined(__AVX512VNNI__)
namespace {

constexpr int kLineVectors = kManyLines / W;
constexpr int kManyRows = 6;  // rows at once: their sums, as integers and floats, fill three quarters of the registers
constexpr int64_t kRowsOfPanel = 44 * kManyRows;  // that a panel is laid out for

// A panel of a row. Where the sums of 32 columns are wanted, `pairs` has them.
struct ManyRowPanel {
    float sums[kChunks], pairs[kChunks / 2];
    float step;
    int8_t high[kStoredPanel], low[kStoredPanel];
};
static_assert(sizeof(ManyRowPanel) <= kStoredPanelBytes);

// Rows [count, width] for `multiply_many`: the first panels of all rows, then the second ones.
void pack_many(const float* rows, int64_t count, int64_t width, int64_t packed, void* first) {
    for (int64_t r = 0; r < count; ++r, rows += width) {
        char* to = (char*)first + r * kStoredPanelBytes;
        for (int64_t c = 0; c < width; c += kStoredPanel, to += packed * kStoredPanelBytes) {
            float last[kStoredPanel] = {};
            const bool whole = c + kStoredPanel <= width;
            if (!whole) __builtin_memcpy(last, rows + c, (width - c) * sizeof(float));
            ManyRowPanel& panel = *(ManyRowPanel*)to;
            panel.step = round_panel(whole ? rows + c : last, panel.high, panel.low, panel.sums);
            for (int i = 0; i < kChunks / 2; ++i) panel.pairs[i] = panel.sums[2 * i] + panel.sums[2 * i + 1];
        }
    }
}

// A panel of kManyLines lines: codes of four columns of every line, and the numbers of every chunk.
struct LaidPanel {
    alignas(64) uint8_t codes[kStoredPanel / 4][kManyLines][4];
    alignas(64) float scale[kChunks][kManyLines], least[kChunks][kManyLines];
};

// Word i of W rows of words, at to[i]; rows are `stride` bytes apart.
SCOUT_INLINE void lay_words(const void* rows, int64_t stride, float* to, int64_t to_stride) {
    Vec x[W];
    for (int l = 0; l < W; ++l) x[l] = load((const float*)((const char*)rows + l * stride));
    transpose(x);
    for (int i = 0; i < W; ++i) store(to + transposed_lane(i) * to_stride, x[i]);
}

// Which four columns are word `word` of vector u in step v.
template <class K>
constexpr int word_of(int v, int u, int word) {
    const int half = K::kRun < kChunkColumns ? u % 2 * K::kRun : 0;
    return (K::chunk(v, u, 4 * word / K::kRun) * kChunkColumns + half + 4 * word % K::kRun) / 4;
}

// Panel `number` of `lines` lines, of which the last is repeated.
template <class K>
SCOUT_INLINE void lay_panel(const uint8_t* first, int64_t lines, int64_t number, int64_t width, LaidPanel& to) {
    const int64_t line_bytes = width / K::kBlock * K::kBytes;
    for (int begin = 0; begin < kManyLines; begin += W) {
        uint8_t last[W][kPanelBytes<K>];
        const uint8_t* at[W];
        alignas(64) Numbers numbers[W];
        for (int l = 0; l < W; ++l) {
            const int64_t line = begin + l < lines ? begin + l : lines - 1;
            at[l] = panel_of<K>(first + line * line_bytes, number, width, last[l]);
            K::numbers(at[l], numbers[l]);
        }
        for (int c = 0; c < kChunks; c += W) {
            lay_words(numbers[0].scale + c / W, sizeof(Numbers), to.scale[c] + begin, kManyLines);
            lay_words(numbers[0].least + c / W, sizeof(Numbers), to.least[c] + begin, kManyLines);
        }
        for (int v = 0; v < K::kSteps; ++v) {
            Vec codes[K::kUnits][W];
            for (int l = 0; l < W; ++l) {
                Bits units[K::kUnits];
                K::codes(at[l], v, units);
                for (int u = 0; u < K::kUnits; ++u) codes[u][l] = Vec(units[u]);
            }
            for (int u = 0; u < K::kUnits; ++u) {
                transpose(codes[u]);
                for (int i = 0; i < W; ++i)
                    store((float*)to.codes[word_of<K>(v, u, transposed_lane(i))][begin], codes[u][i]);
            }
        }
    }
}

// Adds the products of ROWS rows with `columns` columns of a panel to sums. COLUMNS of them have one scale.
template <int COLUMNS, int ROWS>
__attribute__((noinline)) void multiply_panel(const LaidPanel& panel, const char* x, int64_t columns,
                                              float (*sums)[kManyLines]) {
    constexpr int chunks = COLUMNS / kChunkColumns;
    const auto row = [x](int r) { return (const ManyRowPanel*)(x + r * kStoredPanelBytes); };
    Vec added[ROWS][kLineVectors] = {};
    for (int64_t first = 0; first < columns; first += COLUMNS) {
        IntVec products[ROWS][kLineVectors] = {};
#pragma GCC unroll 2
        for (int low = 0; low < 2; ++low) {
            for (int r = 0; low && r < ROWS; ++r)
                for (int l = 0; l < kLineVectors; ++l) products[r][l] <<= 8;
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c += 4) {
                Bits codes[kLineVectors];
                for (int l = 0; l < kLineVectors; ++l) codes[l] = load_bits(panel.codes[(first + c) / 4][l * W]);
                for (int r = 0; r < ROWS; ++r) {
                    const int8_t* bytes = low ? row(r)->low : row(r)->high;
                    const IntVec factors = IntVec(splat_word((const float*)(bytes + first + c)));
                    for (int l = 0; l < kLineVectors; ++l)
                        products[r][l] = dot_codes<8>(products[r][l], codes[l], factors);
                }
            }
        }
        const int64_t chunk = first / kChunkColumns;
        for (int l = 0; l < kLineVectors; ++l) {
            const Vec scale = load(panel.scale[chunk] + l * W), least = load(panel.least[chunk] + l * W);
            for (int r = 0; r < ROWS; ++r) {
                const float* sum = chunks == 1 ? row(r)->sums + chunk : row(r)->pairs + chunk / 2;
                added[r][l] += scale * __builtin_convertvector(products[r][l], Vec);
                added[r][l] += least * splat_word(sum);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int l = 0; l < kLineVectors; ++l)
            store(sums[r] + l * W, load(sums[r] + l * W) + added[r][l] * row(r)->step);
}

// Products of packed rows with lines.
template <class K>
void multiply_many(const LinearRun& run) {
    const int64_t line_bytes = run.width / K::kBlock * K::kBytes;
    LaidPanel panel;
    alignas(64) float sums[kRowsOfPanel][kManyLines];  // in one place: lines of `out` may be far apart
    for (int64_t first = 0; first < run.count; first += kManyLines)
        for (int64_t row = 0; row < run.rows; row += kRowsOfPanel) {
            const int64_t lines = run.count - first < kManyLines ? run.count - first : kManyLines;
            const int64_t count = run.rows - row < kRowsOfPanel ? run.rows - row : kRowsOfPanel;
            __builtin_memset(sums, 0, count * sizeof sums[0]);
            for (int64_t n = 0; n * kStoredPanel < run.width; ++n) {
                lay_panel<K>((const uint8_t*)run.weight + first * line_bytes, lines, n, run.width, panel);
                const int64_t left = run.width - n * kStoredPanel, columns = left < kStoredPanel ? left : kStoredPanel;
                for_head_tiles<kManyRows>(count, [&](int64_t r, auto rows) {
                    const char* x = (const char*)run.x + (n * run.packed + row + r) * kStoredPanelBytes;
                    multiply_panel<K::kScaled, decltype(rows)::value>(panel, x, columns, sums + r);
                });
            }
            for (int64_t r = 0; r < count; ++r)
                __builtin_memcpy(run.out + (row + r) * run.out_stride + first, sums[r], lines * sizeof(float));
        }
}

}  // namespace
#endif
