// A gate before the results that others read. A task enters to write and leaves after; once the gate is shut, no task
// writes any more.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace scout {

class Gate {
  public:
    // Whether the caller may write, until it leaves; false once the gate is shut.
    bool enter() {
        if (!(state_.fetch_add(1, std::memory_order_acquire) & kShut)) return true;
        leave();
        return false;
    }
    void leave() { state_.fetch_sub(1, std::memory_order_release); }
    bool is_shut() const { return state_.load(std::memory_order_relaxed) & kShut; }

    // Returns when every task has left. That takes no longer than writing a row of results.
    void shut() {
        state_.fetch_or(kShut, std::memory_order_relaxed);
        while (state_.load(std::memory_order_acquire) != kShut) std::this_thread::yield();
    }

  private:
    static constexpr int64_t kShut = int64_t(1) << 32;
    std::atomic<int64_t> state_{0};  // the number of tasks inside, plus kShut once shut
};

}  // namespace scout
