#include "runtime/poll_thread.h"

#include <algorithm>
#include <chrono>
#include <exception>

namespace scout {
namespace {

using Clock = std::chrono::steady_clock;

// A step that was broken off may never end. When no word has changed for so long, the thread looks less often.
constexpr auto kBusy = std::chrono::seconds(1);
constexpr auto kPause = std::chrono::milliseconds(1);

}  // namespace

std::unique_lock<std::mutex> PollThread::enter() {
    entering_.fetch_add(1);
    std::unique_lock<std::mutex> lock(mutex_);
    entering_.fetch_sub(1);
    return lock;
}

void PollThread::add(const uint32_t* word, Callee& callee) {
    const auto lock = enter();
    places_.push_back({word, __atomic_load_n(word, __ATOMIC_ACQUIRE), &callee});
}

void PollThread::remove(const Callee& callee) {
    const auto lock = enter();
    const auto gone = [&](const Place& place) { return place.callee == &callee; };
    places_.erase(std::remove_if(places_.begin(), places_.end(), gone), places_.end());
}

void PollThread::begin() {
    const auto lock = enter();
    if (closed_) return;
    failure_.clear();
    under_way_ = true;
    if (!running_) {
        if (thread_.joinable()) thread_.join();  // it has ended: a thread that does so takes the mutex no more
        thread_ = std::thread([this] { serve(); });
        running_ = true;
    }
    wake_.notify_all();
}

void PollThread::end() {
    const auto lock = enter();
    under_way_ = false;
}

std::string PollThread::failure() {
    const auto lock = enter();
    return failure_;
}

void PollThread::close() {
    std::thread thread;
    {
        const auto lock = enter();
        closed_ = true;
        thread.swap(thread_);
    }
    wake_.notify_all();
    if (thread.joinable()) thread.join();
}

void PollThread::serve() noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    try {
        poll(lock);
    } catch (const std::exception& error) {
        failure_ = error.what();
    }
    running_ = false;
}

void PollThread::poll(std::unique_lock<std::mutex>& lock) {
    for (auto changed = Clock::now(); !closed_;) {
        if (!under_way_) {
            wake_.wait(lock, [this] { return closed_ || under_way_; });
            changed = Clock::now();
        }
        const auto now = Clock::now();
        if (scan()) changed = now;
        lock.unlock();
        if (now - changed > kBusy) std::this_thread::sleep_for(kPause);
        do std::this_thread::yield();
        while (entering_.load() > 0);
        lock.lock();
    }
}

// Whether any word has changed.
bool PollThread::scan() {
    bool found = false;
    for (Place& place : places_) {
        const uint32_t number = __atomic_load_n(place.word, __ATOMIC_ACQUIRE);
        if (number == place.seen) continue;
        place.seen = number;
        place.callee->called(number);
        found = true;
    }
    return found;
}

}  // namespace scout
