// Short passes over pages, done by the calling thread: where listed blocks are, and a token that comes.
//
// Both throw std::invalid_argument where a block or an entry is outside its table. A uint8_t is a boolean.
#pragma once

#include "tasks/calls.h"

namespace scout {

// The pages of blocks, int32 [B, H, opened + N] each: the open block of a sequence, if asked for, then N others.
struct PageListCall {
    int64_t B, H, N, C;             // sequences, KV heads, listed blocks, candidates
    Table table;                    // [B, NB], the page of each block
    int64_t width, size;            // NB; tokens of a block
    const int64_t* candidates;      // [B, H, C], blocks
    const int64_t* picks;           // [B, H, N], places of the listed ones among them; null: the first N
    const uint8_t* wanted;          // [B, H, N], others have length 0; null: those below `closed` are wanted
    const int64_t* closed;          // [B]; null where `wanted` is not
    const int64_t *entry, *fill;    // [B], pages of open blocks, and tokens in them but for the last; null: none
    int32_t *index, *length;
};
void list_pages(const PageListCall& call);

// Copies a row of `bytes` of each sequence and KV head to its open block.
struct AppendCall {
    int64_t B, H, entries, positions, bytes;
    const char* from;               // rows, these bytes apart
    int64_t from_b, from_h;
    char* pool;                     // [entries, H, positions] rows, these bytes apart
    int64_t pool_entry, pool_head;
    const int64_t *entry, *fill;    // [B]
};
void append_rows(const AppendCall& call);

}  // namespace scout
