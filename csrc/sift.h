// Small passes over what was ranked: which blocks are worth attending to and absent, and what scouts missed of them.
//
// All throw std::invalid_argument where a block is outside its table. Bytes are booleans.
#pragma once

#include <cstdint>

namespace scout {

struct SiftCall {
    int64_t B, H, N;                // sequences, KV heads, chosen blocks
    const int64_t* blocks;          // [B, H, N]
    const float* wishes;            // [B, H, N], of these blocks
    const int64_t* closed;          // [B], blocks that each sequence has
    const int64_t* slots;           // [B, H, width], the slot of each block
    int64_t width, none;            // none: what stands for no slot
    const uint8_t *asked, *all;     // [B], whether anything is wanted; whether even the least wished for is
    const float* least;             // [B], what an absent block must be wished for
    int64_t always;                 // so many first blocks of a choice are worth it in any case
    uint8_t *valid, *absent;        // [B, H, N]
    int64_t* counts;                // [2, B, H], of both
};
void sift(const SiftCall& call);

// interest = kept * interest + (1 - kept) * wishes, [B, H, width] and [B, H, W], in the asked sequences.
struct BlendCall {
    int64_t B, H, W, width;
    const float* wishes;
    const uint8_t* asked;
    float kept;
    float* interest;
};
void blend(const BlendCall& call);

struct LateCall {
    int64_t B, H, N;
    const int64_t* blocks;          // [B, H, N], what the true queries want
    const uint8_t* absent;          // [B, H, N]
    const float* wishes;            // [B, H, N], of these blocks
    const int64_t* ahead;           // [B, H, N], what scouts chose
    const uint8_t* served;          // [B, H, N], which of it was attended to
    const float* doubt;             // [B, H]
    const uint8_t* asked;           // [B]
    float limit;
    uint8_t *spoilt, *late;         // [B, H], [B, H, N]
    int64_t* counts;                // [2, B, H], whether a head has either, and late blocks
};
void find_late(const LateCall& call);

}  // namespace scout
