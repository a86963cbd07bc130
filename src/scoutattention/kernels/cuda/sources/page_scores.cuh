// How well queries match pages: the log-sum-exp of their products with the keys of each page, kept in 2 bits a channel.
//
// Compiled for one D (channels), P (positions of a page), G (query heads of a KV head), QUERY (their type), WARPS (of a
// program), GROUP (pages that a warp copies to shared memory at a time), STAGES (groups that it holds there) and RESIDENT
// (programs that a processor has registers for).
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
constexpr int WORD_BYTES = 4 * WORDS * P;                    // of a page
constexpr int PAGE_BYTES = WORD_BYTES + 2 * D;               // with its steps
constexpr float UNIT = 16777216.0f;                          // 2^24: one over the smallest subnormal number
static_assert(D % 16 == 0 && (P == 16 || P == 32), "these sizes have no kernel");
static_assert(BATCH % GROUP == 0 && STAGES >= 2 && STAGES - 1 <= BATCH / GROUP, "a warp copies one batch ahead at most");

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

// The pages that a warp has copied, or is copying, each with its words and then its steps.
struct alignas(16) Ring {
    char groups[STAGES][GROUP][PAGE_BYTES];
};

// What a program of scores shares: of each warp, its copies and what its lanes have found.
struct ScoreMemory {
    Ring rings[WARPS];
    Exchange exchanges[WARPS];
};

// A page in shared memory, as a lane sees it.
class Page {
  public:
    __device__ explicit Page(const char* page) : page_(page) {}

    // Finds the powers of a lane's keys, without what the lower bounds add.
    __device__ void score(const Query& query, Found& found) const {
        const int t = threadIdx.x % 4, part = SHARE > 1 ? t / (4 / SHARE) : 0;
        float sums[KEYS / 2][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const bool there = WORDS % 4 == 0 || SHARE > 1 || t + 4 * s < WORDS;  // else its queries are 0
            const int word = SHARE > 1 ? t % (4 / SHARE) : there ? t + 4 * s : 0;
            u32 codes[KEYS], factor[PAIRS];
            load_codes(word, codes);
            const Four* steps = reinterpret_cast<const Four*>(page_ + WORD_BYTES + 32 * word);
            const Four first = steps[0], second = steps[1];
            const u32 all[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
            for (int m = 0; m < PAIRS; ++m) factor[m] = times(query.steps[s][m], step(all, part, m));
#pragma unroll
            for (int key = 0; key < KEYS; ++key) codes[key] >>= 2 * PAIRS * part;
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
    __device__ void load_codes(int word, u32 (&codes)[KEYS]) const {
        const char* from = page_ + 4 * (word * P + threadIdx.x % 32 / 4 * KEYS);
        if constexpr (KEYS == 4) {
            const Four four = *reinterpret_cast<const Four*>(from);
            codes[0] = four.x, codes[1] = four.y, codes[2] = four.z, codes[3] = four.w;
        } else {
            const Two two = *reinterpret_cast<const Two*>(from);
            codes[0] = two.x, codes[1] = two.y;
        }
    }

    __device__ static u32 pair(u32 codes, int m) {
        return m < DIRECT ? codes & (0x00030003u << 2 * m) : (codes >> 2 * DIRECT) & (0x00030003u << 2 * (m - DIRECT));
    }

    // The steps of the channels of a lane's pair m: d and d + 2, of those of its word.
    __device__ static u32 step(const u32 (&all)[8], int part, int m) {
        if (SHARE == 4) {  // pair = 2 part + m
            const bool second = part % 2;
            const u32 a = second ? all[4 + 2 * m] : all[2 * m], b = second ? all[5 + 2 * m] : all[2 * m + 1];
            return __byte_perm(a, b, part < 2 ? 0x5410 : 0x7632);
        }
        const int j = m % 4;
        const u32 place = SHARE == 2 ? (part ? 0x7632 : 0x5410) : (m < 4 ? 0x5410 : 0x7632);
        return __byte_perm(all[2 * j], all[2 * j + 1], place);
    }

    const char* page_;
};

// Scores batches of pages, by one warp, which copies pages to shared memory ahead of those that it scores.
class Scorer {
  public:
    // first: the first of the 8 query heads that are scored.   Batch i has the pages from BATCH * i on, of N; the warp
    // takes i = begin, begin + stride, ...   page(n): the n-th page.   Begins to copy.
    template <class GetPage>
    __device__ Scorer(const Digests& digests, Ring& ring, Exchange& exchange, int first, int begin, int stride, int N,
                      GetPage page)
        : digests_(digests), ring_(ring), exchange_(exchange), first_(first), step_(BATCH * stride), n_(BATCH * begin),
          N_(N) {
        own_ = listed(n_, page), next_ = listed(n_ + step_, page);
#pragma unroll
        for (int group = 0; group < STAGES - 1; ++group) {
            copy(ring_.groups[group], own_, GROUP * group, n_ < N_);
            end_of_copies();
        }
    }

    // Scores the batches.   page: as before.   put(n, head, score): takes the score of the n-th page, a natural logarithm.
    template <class GetPage, class Put>
    __device__ void run(const Query& query, GetPage page, Put put) {
        const int lane = threadIdx.x % 32, r = lane / 4;
        const char* lows_0 = digests_.bounds + 8 * (lane % 4);
        int stage = 0, free = STAGES - 1;
        for (; n_ < N_; n_ += step_) {
            const int after = listed(n_ + 2 * step_, page);
            Two lows[WORDS];
            const char* low = lows_0 + static_cast<u64>(digests_.bounds_s) * static_cast<u32>(own_);
#pragma unroll
            for (int w = 0; w < WORDS; ++w) lows[w] = *reinterpret_cast<const Two*>(low + 32 * w);
#pragma unroll
            for (int group = 0; group < BATCH / GROUP; ++group) {
                wait_for_copies<STAGES - 2>();
                __syncwarp();  // of all lanes; and what the free stage held is scored
                constexpr int ahead = STAGES - 1, groups = BATCH / GROUP;
                const bool later = group + ahead >= groups;
                copy(ring_.groups[free], later ? next_ : own_, GROUP * ((group + ahead) % groups),
                     !later || n_ + step_ < N_);
                end_of_copies();
#pragma unroll
                for (int i = 0; i < GROUP; ++i) {
                    Found found;
                    Page(ring_.groups[stage][i]).score(query, found);
                    exchange_.pages[group * GROUP + i][lane] = found;
                }
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                free = free + 1 == STAGES ? 0 : free + 1;
            }
            __syncwarp();
            join(query, n_ + r < N_, lows, [&](int head, float score) { put(n_ + r, head, score); });
            own_ = next_, next_ = after;
        }
    }

  private:
    // The page of a lane's row, of the batch from n on.
    template <class GetPage>
    __device__ int listed(int n, GetPage page) const {
        return n < N_ ? page(min(n + static_cast<int>(threadIdx.x % 32 / 4), N_ - 1)) : 0;
    }

    // Queues copies of a group, the pages from `start` on of a batch whose pages are `pages` in the lanes of their rows.
    // there: whether there is such a batch.
    __device__ void copy(char (&group)[GROUP][PAGE_BYTES], int pages, int start, bool there) const {
        const Shelf words = {digests_.words, digests_.words_s, 0};
        const Shelf steps = {digests_.bounds + digests_.bounds_r, digests_.bounds_s, WORD_BYTES};
        copy_part<WORD_BYTES / 16>(group, words, pages, start, there);
        copy_part<2 * D / 16>(group, steps, pages, start, there);
    }

    struct Shelf {  // of a part of every page: that of page 0, bytes from one to the next, and its place in a ring
        const char* first;
        u32 stride;
        int place;
    };

    // The same for one part, CHUNKS of 16 bytes of each page.
    template <int CHUNKS>
    __device__ static void copy_part(char (&group)[GROUP][PAGE_BYTES], Shelf part, int pages, int start, bool there) {
#pragma unroll
        for (int first = 0; first < GROUP * CHUNKS; first += 32) {
            const int chunk = first + threadIdx.x % 32, i = min(chunk / CHUNKS, GROUP - 1), at = 16 * (chunk % CHUNKS);
            const u32 page = __shfl_sync(~0u, pages, 4 * (start + i));  // where all lanes are
            if (there && (GROUP * CHUNKS % 32 == 0 || chunk < GROUP * CHUNKS))
                copy_16_bytes(&group[i][part.place + at], part.first + at + static_cast<u64>(part.stride) * page);
        }
    }

    // Puts together what the lanes have found of page r, for the two heads of this lane.
    template <class Put>
    __device__ void join(const Query& query, bool there, const Two (&lows)[WORDS], Put put) const {
        const int t = threadIdx.x % 4, r = threadIdx.x % 32 / 4;
        float bases[4] = {};
#pragma unroll
        for (int w = 0; w < WORDS; ++w) multiply(bases, lows[w].x, 0, lows[w].y, 0, query.lows[w][0], query.lows[w][1]);
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
    Ring& ring_;
    Exchange& exchange_;
    const int first_, step_;
    int n_;         // the first page of the batch that is scored
    const int N_;
    int own_, next_;  // of each row: a page of this batch, and of the next
};
