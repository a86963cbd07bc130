// How well queries match pages: the log-sum-exp of their products with the keys of each page, kept in 2 bits a channel.
//
// Compiled for one D (channels), P (positions of a page), G (query heads of a KV head), QUERY (their type) and AHEAD
// (pages that a warp reads before it scores the first of them).
//
// The 2 bits of a code, wherever they stand in the lower 10 bits of a float16, are a subnormal number: the code times a
// power of two. So one mask turns two codes of a word into two numbers that the matrix unit takes, and the power is
// divided out of the query beforehand.
#pragma once

#include "words.cuh"

constexpr int WORDS = (D + 15) / 16;                         // of a key, 16 codes each
constexpr int SHARE = WORDS == 1 ? 4 : WORDS == 2 ? 2 : 1;   // lanes that take parts of one word
constexpr int STEPS = SHARE > 1 ? 1 : (WORDS + 3) / 4;       // words of a lane, for each of its keys
constexpr int PAIRS = 8 / SHARE;                             // pairs of codes that it takes of a word
constexpr int KEYS = P / 8;                                  // keys of a page that a lane takes: 2 or 4
constexpr int BATCH = 8;                                     // pages that a warp scores at a time
constexpr int DIRECT = 5;                                    // pairs that lie in the lower 10 bits
constexpr float UNIT = 16777216.0f;                          // 2^24: one over the smallest subnormal number
static_assert(D % 16 == 0 && (P == 16 || P == 32), "these sizes have no kernel");

struct Digests {  // of a KV head of one layer: words [S, WORDS, P] and bounds [S, 2, D]; strides in bytes
    const char* words;
    const char* bounds;
    u32 words_s, bounds_s, bounds_r;
};

// The queries of one KV head, in the registers of a warp. Lane 4 r + t has those of head `first` + r.
struct Query {
    u32 steps[STEPS][PAIRS];  // as they meet codes, one word after the other
    u32 lows[WORDS][2];       // as they meet the lower bounds

    // number(head, d): of a query, times the scale and the logarithm of e to base two; 0 where there is no such head.
    template <class Number>
    __device__ void load(int first, Number get) {
        const int lane = threadIdx.x % 32, t = lane % 4, head = first + lane / 4;
        const auto number = [&](int d) { return head < G ? get(head, d) : 0.0f; };
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int word = SHARE > 1 ? t % (4 / SHARE) : t + 4 * s, part = SHARE > 1 ? t / (4 / SHARE) : 0;
#pragma unroll
            for (int m = 0; m < PAIRS; ++m) {
                const int pair = part * PAIRS + m, d = 16 * word + 4 * (pair % 4) + pair / 4;
                const float unit = 1.0f / (1 << 2 * (m < DIRECT ? m : m - DIRECT));
                steps[s][m] = word < WORDS ? halves(number(d) * unit, number(d + 2) * unit) : 0;
            }
        }
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const int d = 16 * w + 4 * t;
            lows[w][0] = halves(number(d), number(d + 1));
            lows[w][1] = halves(number(d + 2), number(d + 3));
        }
    }
};

// What a lane has found of a page for its two heads: the largest exponent of two in units of 1 / UNIT, and the sum of
// the powers beside it.
struct alignas(16) Found {
    float most[2], sum[2];
};

// Where lanes leave what they have found. A page's row is longer than it must be, so that no two lanes that read at the
// same time meet in a bank.
struct Exchange {
    Found pages[BATCH][36];
};

// What a lane reads of one page.
struct Page {
    u32 words[STEPS][KEYS];
    Four steps[STEPS][2];

    // words, bounds: what the lane reads of page 0.
    __device__ void load(const Digests& digests, const char* words_0, const char* bounds_0, int page) {
        const char* from = words_0 + static_cast<u64>(digests.words_s) * static_cast<u32>(page);
        const char* bound = bounds_0 + static_cast<u64>(digests.bounds_s) * static_cast<u32>(page);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const bool there = WORDS % 4 == 0 || SHARE > 1 || threadIdx.x % 4 + 4 * s < WORDS;  // else its queries are 0
            const int at = there ? s : 0;
            if (KEYS == 4) {
                const Four four = *reinterpret_cast<const Four*>(from + at * (4 * P * 4));
                words[s][0] = four.x, words[s][1] = four.y, words[s][2] = four.z, words[s][3] = four.w;
            } else {
                const Two two = *reinterpret_cast<const Two*>(from + at * (4 * P * 4));
                words[s][0] = two.x, words[s][1] = two.y;
            }
            steps[s][0] = *reinterpret_cast<const Four*>(bound + at * (4 * 16 * 2));
            steps[s][1] = *reinterpret_cast<const Four*>(bound + at * (4 * 16 * 2) + 16);
        }
    }

    // Finds the powers of a lane's keys, without what the lower bounds add.
    __device__ void score(const Query& query, Found& found) const {
        const int t = threadIdx.x % 4, part = SHARE > 1 ? t / (4 / SHARE) : 0;
        float sums[KEYS / 2][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 factor[PAIRS], codes[KEYS];
#pragma unroll
            for (int m = 0; m < PAIRS; ++m) factor[m] = times(query.steps[s][m], step(s, part, m));
#pragma unroll
            for (int key = 0; key < KEYS; ++key) codes[key] = words[s][key] >> (2 * PAIRS * part);
#pragma unroll
            for (int m = 0; m < PAIRS; m += 2) {
#pragma unroll
                for (int tile = 0; tile < KEYS / 2; ++tile) {
                    const u32 a = codes[2 * tile], b = codes[2 * tile + 1];
                    multiply(sums[tile], pair(a, m), pair(b, m), pair(a, m + 1), pair(b, m + 1), factor[m],
                             factor[m + 1]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float most = fmaxf(sums[0][i], sums[0][i + 2]);
            if (KEYS == 4) most = fmaxf(most, fmaxf(sums[KEYS / 2 - 1][i], sums[KEYS / 2 - 1][i + 2]));
            const float base = -most * UNIT;
            float sum = 0;
#pragma unroll
            for (int tile = 0; tile < KEYS / 2; ++tile) {
                sum += power_of_two(fmaf(sums[tile][i], UNIT, base));
                sum += power_of_two(fmaf(sums[tile][i + 2], UNIT, base));
            }
            found.most[i] = most, found.sum[i] = sum;
        }
    }

  private:
    __device__ static u32 pair(u32 codes, int m) {
        return m < DIRECT ? codes & (0x00030003u << 2 * m) : (codes >> 2 * DIRECT) & (0x00030003u << 2 * (m - DIRECT));
    }

    // The steps of the channels of a lane's pair m: d and d + 2.
    __device__ u32 step(int s, int part, int m) const {
        const u32 all[8] = {steps[s][0].x, steps[s][0].y, steps[s][0].z, steps[s][0].w,
                            steps[s][1].x, steps[s][1].y, steps[s][1].z, steps[s][1].w};
        if (SHARE == 4) {  // pair = 2 part + m
            const bool second = part % 2;
            const u32 a = second ? all[4 + 2 * m] : all[2 * m], b = second ? all[5 + 2 * m] : all[2 * m + 1];
            return __byte_perm(a, b, part < 2 ? 0x5410 : 0x7632);
        }
        const int j = m % 4;
        const u32 place = SHARE == 2 ? (part ? 0x7632 : 0x5410) : (m < 4 ? 0x5410 : 0x7632);
        return __byte_perm(all[2 * j], all[2 * j + 1], place);
    }
};

// Scores batches of pages, by one warp, which reads pages ahead of those that it scores.
class Scorer {
  public:
    // first: the first of the 8 query heads that are scored.
    __device__ Scorer(const Digests& digests, const Query& query, Exchange& exchange, int first)
        : digests_(digests), query_(query), exchange_(exchange), first_(first) {
        const int t = threadIdx.x % 4, word = SHARE > 1 ? t % (4 / SHARE) : min(t, WORDS - 1);
        words_0_ = digests.words + 4 * (word * P + threadIdx.x % 32 / 4 * KEYS);
        bounds_0_ = digests.bounds + digests.bounds_r + 2 * 16 * word;
        lows_0_ = digests.bounds + 2 * 4 * t;
    }

    // Scores a warp's batches: batch i has the pages from BATCH * i on, of N, for i = begin, begin + stride, ...
    // page(n): the n-th page.   put(n, head, score): takes the score of the n-th page, a natural logarithm.
    template <class GetPage, class Put>
    __device__ void run(int begin, int stride, int N, GetPage page, Put put) {
        const int r = threadIdx.x % 32 / 4;
        const auto listed = [&](int n) { return n < N ? page(min(n + r, N - 1)) : 0; };
        int n = BATCH * begin;
        if (n >= N) return;
        int own = listed(n);
        Page pages[2][AHEAD];
        read(pages[0], own, 0);
        for (; n < N; n += BATCH * stride) {
            const int next = listed(n + BATCH * stride);
            Two lows[WORDS];
            const char* low = lows_0_ + static_cast<u64>(digests_.bounds_s) * static_cast<u32>(own);
#pragma unroll
            for (int w = 0; w < WORDS; ++w) lows[w] = *reinterpret_cast<const Two*>(low + 32 * w);
            __syncwarp();
#pragma unroll
            for (int group = 0; group < BATCH / AHEAD; ++group) {
                const bool last = group == BATCH / AHEAD - 1;
                if (!last || n + BATCH * stride < N)
                    read(pages[(group + 1) % 2], last ? next : own, last ? 0 : (group + 1) * AHEAD);
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    Found found;
                    pages[group % 2][i].score(query_, found);
                    exchange_.pages[group * AHEAD + i][threadIdx.x % 32] = found;
                }
            }
            __syncwarp();
            join(n + r < N, lows, [&](int head, float score) { put(n + r, head, score); });
            own = next;
        }
    }

  private:
    __device__ void read(Page (&pages)[AHEAD], int own, int start) const {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            pages[i].load(digests_, words_0_, bounds_0_, __shfl_sync(~0u, own, 4 * (start + i)));
    }

    // Puts together what the lanes have found of page r, for the two heads of this lane.
    template <class Put>
    __device__ void join(bool there, const Two (&lows)[WORDS], Put put) const {
        const int t = threadIdx.x % 4, r = threadIdx.x % 32 / 4;
        float bases[4] = {};
#pragma unroll
        for (int w = 0; w < WORDS; ++w) multiply(bases, lows[w].x, 0, lows[w].y, 0, query_.lows[w][0], query_.lows[w][1]);
        Found parts[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) parts[i] = exchange_.pages[r][4 * i + t];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int head = first_ + 2 * t + i;
            float most = parts[0].most[i], sum = 0;
#pragma unroll
            for (int part = 1; part < 8; ++part) most = fmaxf(most, parts[part].most[i]);
            const float base = -most * UNIT;
#pragma unroll
            for (int part = 0; part < 8; ++part)
                sum += parts[part].sum[i] * power_of_two(fmaf(parts[part].most[i], UNIT, base));
            if (there && head < G) put(head, (bases[i] - base + log_of_two(sum)) * LN2);
        }
    }

    const Digests& digests_;
    const Query& query_;
    Exchange& exchange_;
    const int first_;
    const char *words_0_, *bounds_0_, *lows_0_;  // what the lane reads of page 0
};
