// Short passes over chosen blocks, done by the calling thread: splitting a choice into near and far blocks, updating
// the interest, and finding what a scout missed or spoilt.
//
// All throw std::invalid_argument where a block is outside its table. A uint8_t is a boolean.
#pragma once

#include <cstdint>

namespace scout {

struct SplitChoiceCall {
    int64_t B, H, N, C;             // sequences, KV heads, chosen blocks, candidates
    const int64_t* candidates;      // [B, H, C], blocks
    const int64_t* picks;           // [B, H, N], places of the chosen ones among them; null: the first N
    const float* wishes;            // of the chosen ones: N for each sequence and KV head, these strides apart
    int64_t wishes_b, wishes_h;
    const int64_t* closed;          // [B], blocks that each sequence has
    const int64_t* slots;           // [B, H, width], the slot of each block
    int64_t width, no_slot;         // no_slot: the number that means that a block has none
    const uint8_t *asked, *all;     // [B], whether the choice counts; whether all absent blocks of it do
    const float* threshold;         // [B], the wish that an absent block needs where not all of them count
    int64_t always;                 // so many first blocks of a choice count whatever their wish
    int64_t* blocks;                // [B, H, N], the chosen ones
    uint8_t *attended, *absent;     // [B, H, N], blocks to attend to; those of them that have no slot
    int64_t* counts;                // [2, B, H], of both
};
void split_choice(const SplitChoiceCall& call);

// In the asked sequences, interest = kept * interest + (1 - kept) * wish, the wish of a block that is not among C being 0.
struct UpdateInterestCall {
    int64_t B, H, C, width;
    const int64_t* blocks;          // [B, H, C], no two alike
    const float* wishes;            // [B, H, C], of these blocks
    const uint8_t* asked;           // [B]
    float kept;
    float* interest;                // [B, H, width]
};
void update_interest(const UpdateInterestCall& call);

struct FindLateCall {
    int64_t B, H, N;
    const int64_t* blocks;          // [B, H, N], chosen by the true queries
    const uint8_t* absent;          // [B, H, N]
    const float* wishes;            // [B, H, N], of these blocks
    const int64_t* scouted;         // [B, H, N], blocks chosen by the scouts
    const uint8_t* served;          // [B, H, N], which scouted blocks were attended to
    const float* scout_error;       // [B, H]
    const uint8_t* asked;           // [B], sequences that have a scout
    float limit;                    // of the scout error, and of the wishes for missed blocks
    uint8_t *spoilt, *late;         // [B, H], [B, H, N]
    int64_t* counts;                // [2, B, H]: 1 where a head is spoilt or has late blocks; its late blocks
};
void find_late(const FindLateCall& call);

}  // namespace scout
