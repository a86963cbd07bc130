// Products of a few rows with weights in stored blocks.
//
// A row is rounded to 16-bit integers, in each panel of 256 columns to steps of its own. With an integer's high and low
// byte multiplied apart, a sum of products with codes is a sum of integers, and
//
//     row . weights = step * sum over chunks of (scale * sum(integer * code) + least * sum(integer)).
#pragma once

#include "bodies/stored/kinds.h"

namespace {

constexpr float kMostInteger = 127 * 256;  // of an integer whose high byte is 127
constexpr int64_t kStoredAhead = 8192;     // bytes of weights that are prefetched before they are read

// A panel of a row: in each vector of codes, the high bytes that belong to it, then the low ones.
struct RowPanel {
    float sums[kChunks];  // of integers, of each chunk
    int8_t bytes[2 * kStoredPanel];
    float step;
};
static_assert(sizeof(RowPanel) <= kStoredPanelBytes);

// Whether all numbers of a panel are finite, and the largest magnitude.
SCOUT_INLINE bool find_largest(const float* x, float& largest) {
    Vec most = {}, zero = {};
    for (int c = 0; c < kStoredPanel; c += W) most = larger(magnitude(load(x + c)), most), zero += load(x + c) * 0;
    largest = max_lane(most);
    return sum_lanes(zero) == 0;
}

// Rounds a panel to integers, whose high and low bytes are written apart, and the sums of each chunk; returns their step.
SCOUT_INLINE float round_panel(const float* x, int8_t* high, int8_t* low, float* sums) {
    float largest;
    const bool finite = find_largest(x, largest);
    const float inverse = finite && largest > 1e-30f ? kMostInteger / largest : 0;
    for (int chunk = 0; chunk < kChunks; ++chunk) {
        Vec sum = {};
        for (int c = chunk * kChunkColumns; c < (chunk + 1) * kChunkColumns; c += W) {
            const Vec shifted = (finite ? load(x + c) : Vec{}) * inverse + kRound;
            store_bytes(high + c, Vec((IntVec(shifted) + 128) >> 8));
            store_bytes(low + c, shifted);
            sum += shifted - kRound;
        }
        sums[chunk] = sum_lanes(sum);
    }
    return finite ? largest / kMostInteger : __builtin_nanf("");
}

template <class K>
SCOUT_INLINE void pack_panel(const float* x, RowPanel& to) {
    int8_t high[kStoredPanel], low[kStoredPanel];
    to.step = round_panel(x, high, low, to.sums);
    for (int v = 0; v < K::kSteps; ++v)
        for (int u = 0; u < K::kUnits; ++u)
            for (int i = 0; i < 4 * W / K::kRun; ++i) {
                const int from = K::chunk(v, u, i) * kChunkColumns + (K::kRun < kChunkColumns ? u % 2 * K::kRun : 0);
                int8_t* bytes = to.bytes + (v * K::kUnits + u) * 8 * W + i * K::kRun;
                __builtin_memcpy(bytes, high + from, K::kRun);
                __builtin_memcpy(bytes + 4 * W, low + from, K::kRun);
            }
}

// Rows [count, width] for `multiply_stored`; columns beyond the width are zero.
template <class K>
void pack_stored(const float* rows, int64_t count, int64_t width, void* packed) {
    char* to = (char*)packed;
    for (int64_t r = 0; r < count; ++r, rows += width)
        for (int64_t c = 0; c < width; c += kStoredPanel, to += kStoredPanelBytes) {
            float last[kStoredPanel] = {};
            const bool whole = c + kStoredPanel <= width;
            if (!whole) __builtin_memcpy(last, rows + c, (width - c) * sizeof(float));
            pack_panel<K>(whole ? rows + c : last, *(RowPanel*)to);
        }
}

template <class K>
constexpr int64_t kPanelBytes = kStoredPanel / K::kBlock * K::kBytes;

// The bytes of a line's panel; those of a last panel that is not whole are copied, with zeros behind them.
template <class K>
SCOUT_INLINE const uint8_t* panel_of(const uint8_t* line, int64_t number, int64_t width, uint8_t* last) {
    const uint8_t* at = line + number * kPanelBytes<K>;
    const int64_t blocks = (width - number * kStoredPanel) / K::kBlock;
    if (blocks * K::kBlock >= kStoredPanel) return at;
    __builtin_memset(last, 0, kPanelBytes<K>);
    __builtin_memcpy(last, at, blocks * K::kBytes);
    return last;
}

// The scales and least numbers of a line's panel.
template <class K>
struct PanelScales {
    Numbers numbers;
    float scales[kChunks];

    // Of chunks that the line does not have, all is 0.
    SCOUT_INLINE void open(const uint8_t* at, int chunks) {
        K::numbers(at, numbers);
        for (int i = 0; chunks < kChunks && i < kChunks / W; ++i) {
            const IntVec there = lane_numbers(AllLanes()) < chunks - i * W - IntVec{};
            numbers.scale[i] = Vec(IntVec(numbers.scale[i]) & there);
            numbers.least[i] = Vec(IntVec(numbers.least[i]) & there);
        }
        if (W < 16) __builtin_memcpy(scales, numbers.scale, sizeof scales);
    }
    // In each lane, the scale of the codes of vector u in step v.
    SCOUT_INLINE Vec scale(int v, int u) const { return lanes(v, u, AllLanes()); }

  private:
    template <int... I>
    SCOUT_INLINE Vec lanes(int v, int u, Lanes<I...>) const {
#if defined(__AVX512F__)
        const IntVec index = {K::chunk(v, u, 4 * I / K::kRun)...};
        return Vec(_mm512_maskz_permutexvar_ps(0xffff, __m512i(index), __m512(numbers.scale[0])));
#else
        return Vec{scales[K::chunk(v, u, 4 * I / K::kRun)]...};
#endif
    }
};

// Adds the products of ROWS rows with the panels of LINES lines. Not WHOLE, only the first chunks of a panel count.
template <class K, int LINES, int ROWS, bool WHOLE>
SCOUT_INLINE void add_panel(const uint8_t* const at[LINES], const RowPanel* const x[ROWS], int chunks,
                            Vec sums[LINES][ROWS]) {
    PanelScales<K> panels[LINES];
    Vec added[LINES][ROWS];
    for (int l = 0; l < LINES; ++l) {
        panels[l].open(at[l], WHOLE ? kChunks : chunks);
        for (int r = 0; r < ROWS; ++r) {
            added[l][r] = Vec{};  // so that each sum is one fused product, whatever the number of rows
            for (int i = 0; i < kChunks / W; ++i)
                added[l][r] += panels[l].numbers.least[i] * load(x[r]->sums + i * W);
        }
    }
    const auto step = [&](int v) {
        Bits codes[LINES][K::kUnits];
        for (int l = 0; l < LINES; ++l) K::codes(at[l], v, codes[l]);
#pragma GCC unroll 4
        for (int u = 0; u < K::kUnits; u += K::kShared) {
            Vec scale[LINES];
            for (int l = 0; l < LINES; ++l) scale[l] = panels[l].scale(v, u);
            for (int r = 0; r < ROWS; ++r) {
                const int8_t* bytes = x[r]->bytes + (v * K::kUnits + u) * 8 * W;
                IntVec products[LINES] = {};
                for (int low = 0; low < 2; ++low)
                    for (int s = 0; s < K::kShared; ++s) {
                        const IntVec factors = IntVec(load_bits(bytes + (2 * s + low) * 4 * W));
                        for (int l = 0; l < LINES; ++l) {
                            if (low && s == 0) products[l] <<= 8;
                            products[l] = dot_codes<K::kBits>(products[l], codes[l][u + s], factors);
                        }
                    }
                for (int l = 0; l < LINES; ++l) added[l][r] += scale[l] * __builtin_convertvector(products[l], Vec);
            }
        }
    };
    if constexpr (WHOLE) {
#pragma GCC unroll 8
        for (int v = 0; v < K::kSteps; ++v) step(v);
    } else {
        for (int v = 0; v * (kChunks / K::kSteps) < chunks; ++v) step(v);
    }
    for (int l = 0; l < LINES; ++l)
        for (int r = 0; r < ROWS; ++r) sums[l][r] += added[l][r] * x[r]->step;
}

constexpr int kLinesAtOnce = W == 16 ? 2 : 1;  // a row that is loaded serves so many lines, as there are registers

constexpr int64_t kCachedBytes = 16384;  // of weights that are multiplied with all rows before the next ones

// Some lines and rows, and where their products go.
struct LineTile {
    const uint8_t* lines[kLinesAtOnce];
    float* out[kLinesAtOnce];
    const char* rows;
    const uint8_t* end;  // of the memory that may be read
    int64_t width, out_stride;

    int64_t panels() const { return (width + kStoredPanel - 1) / kStoredPanel; }
    const RowPanel* row(int r, int64_t panel) const {
        return (const RowPanel*)(rows + (r * panels() + panel) * kStoredPanelBytes);
    }
};

// out[l][r * stride] = row r . line l, of ROWS rows.
template <class K, int ROWS>
__attribute__((noinline)) void multiply_lines(const LineTile& t) {
    constexpr int LINES = kLinesAtOnce;
    const int64_t panels = t.panels(), whole = t.width / kStoredPanel;
    Vec sums[LINES][ROWS];
    for (int i = 0; i < LINES * ROWS; ++i) sums[i / ROWS][i % ROWS] = Vec{};
    const uint8_t* at[LINES];
    const RowPanel* x[ROWS];
    for (int64_t n = 0; n < whole; ++n) {
        for (int r = 0; r < ROWS; ++r) x[r] = t.row(r, n);
        for (int l = 0; l < LINES; ++l) {
            at[l] = t.lines[l] + n * kPanelBytes<K>;
            for (int64_t b = 0; b < kPanelBytes<K>; b += kLine) __builtin_prefetch(at[l] + kStoredAhead + b);
        }
        add_panel<K, LINES, ROWS, true>(at, x, kChunks, sums);
    }
    if constexpr (K::kBlock < kStoredPanel)
        if (whole < panels) {
            uint8_t last[LINES][kPanelBytes<K>];
            for (int r = 0; r < ROWS; ++r) x[r] = t.row(r, whole);
            for (int l = 0; l < LINES; ++l) {
                at[l] = t.lines[l] + whole * kPanelBytes<K>;  // what is behind the line is not used, if it is there
                if (t.end - at[l] < kPanelBytes<K>) at[l] = panel_of<K>(t.lines[l], whole, t.width, last[l]);
            }
            add_panel<K, LINES, ROWS, false>(at, x, int(t.width % kStoredPanel) / kChunkColumns, sums);
        }
    float totals[LINES * ROWS];
    sum_all<LINES * ROWS>(&sums[0][0], totals);
    for (int l = 0; l < LINES; ++l)
        for (int r = 0; r < ROWS; ++r) t.out[l][r * t.out_stride] = totals[l * ROWS + r];
}

// A line may have no columns.
template <class K>
void multiply_stored(const LinearRun& run) {
    const int64_t line_bytes = run.width / K::kBlock * K::kBytes;
    const int64_t lines_in_cache = (kCachedBytes / (line_bytes + 1) / kLinesAtOnce + 1) * kLinesAtOnce;  // about
    const uint8_t* weight = (const uint8_t*)run.weight;
    LineTile tile = {{}, {}, nullptr, weight + run.count * line_bytes, run.width, run.out_stride};
    for (int64_t begin = 0; begin < run.count; begin += lines_in_cache)
        for_head_tiles(run.rows, [&](int64_t r, auto rows) {
            tile.rows = (const char*)run.x + r * tile.panels() * kStoredPanelBytes;
            for (int64_t first = begin; first < run.count && first < begin + lines_in_cache; first += kLinesAtOnce) {
                for (int l = 0; l < kLinesAtOnce; ++l) {
                    const int64_t line = first + l < run.count ? first + l : run.count - 1;
                    tile.lines[l] = weight + line * line_bytes, tile.out[l] = run.out + r * run.out_stride + line;
                }
                multiply_lines<K, decltype(rows)::value>(tile);
            }
        });
}

}  // namespace
