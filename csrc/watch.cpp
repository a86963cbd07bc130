#include "watch.h"

#include <chrono>

#include "handover.h"

namespace scout {
namespace {

// How long a thread that has nothing to do looks around before it sleeps, and for how long at a time: a decode step
// asks every few hundred microseconds.
constexpr auto kPatience = std::chrono::milliseconds(2);
constexpr auto kNap = std::chrono::microseconds(50);

}  // namespace

Watch::Watch(std::vector<uint64_t> tickets, int32_t* flags) {
    for (size_t i = 0; i < tickets.size(); ++i)
        places_.push_back({reinterpret_cast<void*>(tickets[i]), flags + 2 * i, flags + 2 * i + 1});
    thread_ = std::thread([this] { serve(); });
}

void Watch::serve() {
    auto last = Job::Clock::now();
    while (!closed_.load(std::memory_order_relaxed)) {
        bool busy = false;
        for (Place& place : places_) busy |= look_at(place);
        const auto now = Job::Clock::now();
        if (busy) last = now;
        if (now < last + kPatience) std::this_thread::yield();
        else std::this_thread::sleep_for(kNap);
    }
}

// Whether anything is under way.
bool Watch::look_at(Place& place) {
    const int32_t asked = __atomic_load_n(place.asked, __ATOMIC_ACQUIRE);
    if (asked != place.number) {
        place.number = asked, place.under_way = true;
        scout_handover_start(place.ticket);
    }
    if (!place.under_way) return false;
    if (!scout_handover_poll(place.ticket)) return true;
    place.under_way = false;
    __atomic_store_n(place.ended, place.number, __ATOMIC_RELEASE);
    return true;
}

void Watch::close() {
    closed_.store(true, std::memory_order_relaxed);
    if (thread_.joinable()) thread_.join();
}

}  // namespace scout
