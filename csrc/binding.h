// What the extension's Python face consists of: addresses and sizes as plain integers.
#pragma once

#include <nanobind/nanobind.h>

#include <array>

#include "handover.h"
#include "plan_common.h"
#include "pool.h"

namespace nb = nanobind;

namespace scout {

template <class T>
T* pointer(uint64_t address) {
    check_aligned(address, alignof(T));
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// pointers: q, k, v, their bounds or 0, index, length, out, lse, mean key or 0.
// sizes: B, H, G, D, N, S, P, dtype.
// strides, in elements, by page and head: k, v, their bounds; by sequence and head: index, length.
PartialCall partial_call(const std::array<uint64_t, 10>& pointers, const std::array<int64_t, 8>& sizes,
                         const std::array<int64_t, 12>& strides, float scale);

// Closing one waits for threads, none of which wants Python's lock.
struct BoundHandover : Handover {
    using Handover::Handover;
    ~BoundHandover() {
        nb::gil_scoped_release released;
        close();
    }
};

// The class Handover, and the addresses of the C functions that take its ticket.
void bind_handover(nb::module_& m);

}  // namespace scout
