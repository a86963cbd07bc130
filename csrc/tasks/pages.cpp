#include "tasks/pages.h"

#include <cstring>

#include "tasks/common.h"

namespace scout {

void list_pages(const PageListCall& call) {
    int32_t *index = call.index, *length = call.length;
    for (int64_t row = 0; row < call.B * call.H; ++row) {
        const int64_t b = row / call.H;
        if (call.entry) *index++ = int32_t(call.entry[b]), *length++ = int32_t(call.fill[b] + 1);
        const int32_t* pages = call.table.row(b, 0);
        for (int64_t n = row * call.N; n < (row + 1) * call.N; ++n) {
            const int64_t pick = call.picks ? call.picks[n] : n - row * call.N;
            check("pick", pick, call.C - 1, "the candidates");
            const int64_t block = call.candidates[row * call.C + pick];
            check("block", block, call.width - 1, "the blocks that have pages");
            const bool wanted = call.wanted ? call.wanted[n] : block < call.closed[b];
            *index++ = pages[block], *length++ = wanted ? int32_t(call.size) : 0;
        }
    }
}

void append_rows(const AppendCall& call) {
    for (int64_t b = 0; b < call.B; ++b) {
        check("entry", call.entry[b], call.entries - 1, "the entries of the pool");
        check("fill", call.fill[b], call.positions - 1, "the positions of a block");
        char* to = call.pool + call.entry[b] * call.pool_entry + call.fill[b] * call.bytes;
        for (int64_t h = 0; h < call.H; ++h)
            std::memcpy(to + h * call.pool_head, call.from + b * call.from_b + h * call.from_h, call.bytes);
    }
}

}  // namespace scout
