// The sum of a memory's 64-bit words: it serves to time how fast memory can be read.
#pragma once

#include "bodies/tiles.h"

namespace {

typedef uint64_t Words __attribute__((vector_size(4 * W)));

constexpr int kStreams = 4;       // parts that are read side by side: one alone does not keep the memory busy
constexpr int64_t kBytesAhead = 2048;  // bytes of each part that are prefetched before they are read

// bytes: a multiple of kStreams * kLine.
uint64_t read_words(const char* data, int64_t bytes) {
    const int64_t stream = bytes / kStreams;
    Words sums[kStreams] = {};
    for (int64_t i = 0; i < stream; i += kLine)
        for (int s = 0; s < kStreams; ++s) {
            const char* line = data + s * stream + i;
            __builtin_prefetch(line + kBytesAhead, 0, 0);
            for (int64_t at = 0; at < kLine; at += sizeof(Words)) {
                Words words;
                __builtin_memcpy(&words, line + at, sizeof words);
                sums[s] += words;
            }
        }
    uint64_t sum = 0;
    for (const Words& words : sums)
        for (int i = 0; i < int(sizeof(Words) / sizeof(uint64_t)); ++i) sum += words[i];
    return sum;
}

}  // namespace
