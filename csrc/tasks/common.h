// What all calls share: how many tasks and threads a call is worth, the scratch memory of a task, and how an index or
// an address is refused.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "tasks/calls.h"

namespace scout {

// How many threads to wake for `work`: one, and one more for every `per_thread` of it, at most `most`. Waking a thread
// takes tens of microseconds, in which the others could do a small call.
inline int64_t worthwhile_threads(int64_t work, int64_t per_thread, int64_t most) {
    return std::min(most, 1 + work / per_thread);
}

// How many tasks to make for so many threads. Each thread gets several, so that a thread that starts late still ends
// with the others.
inline int64_t wanted_tasks(int64_t threads) { return threads == 1 ? 1 : 4 * threads; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 64-byte aligned memory for the task that this thread runs; its content lasts until the next task.
inline float* scratch_memory(int64_t floats) {
    thread_local std::vector<float> memory;
    const size_t needed = floats + 16;
    if (memory.size() < needed) memory.resize(needed);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

inline constexpr int64_t kElementBytes[kPageTypes] = {4, 2, 2, 1, 1};

inline void check(const char* what, int64_t value, int64_t limit, const char* of) {
    if (value < 0 || value > limit)
        throw std::invalid_argument(std::string(what) + " " + std::to_string(value) + " is outside 0.." +
                                    std::to_string(limit) + ", " + of);
}

inline void check_aligned(uintptr_t address, size_t bytes) {
    if (address % bytes != 0)
        throw std::invalid_argument("a tensor begins at address " + std::to_string(address) +
                                    ", not at a multiple of its elements' " + std::to_string(bytes) +
                                    " bytes: pass a clone of it");
}

inline void check_aligned(const void* memory, DType dtype) {
    check_aligned(reinterpret_cast<uintptr_t>(memory), kElementBytes[dtype]);
}

}  // namespace scout
