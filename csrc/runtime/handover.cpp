#include "runtime/handover.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <limits>
#include <unordered_map>

namespace scout {
namespace {

// The handover of each ticket, and how many calls are inside that handover. A captured graph can be replayed at any
// time, so the number of calls still to come is unknown. So a call holds a ticket, and looks here whether the ticket
// still has a handover.
class Tickets {
  public:
    uint64_t add(Handover* handover) {
        std::lock_guard<std::mutex> lock(mutex_);
        places_[++last_] = {handover, 0};
        return last_;
    }

    // Returns when no call is inside.
    void remove(uint64_t ticket) {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto place = places_.find(ticket);
        if (place == places_.end()) return;
        place->second.handover = nullptr;
        left_.wait(lock, [&] { return place->second.inside == 0; });
        places_.erase(ticket);
    }

    template <class Call>
    void enter(uint64_t ticket, Call call) {
        Handover* handover = nullptr;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            const auto place = places_.find(ticket);
            if (place == places_.end() || !place->second.handover) return;
            handover = place->second.handover;
            ++place->second.inside;
        }
        call(*handover);
        std::lock_guard<std::mutex> lock(mutex_);
        --places_.find(ticket)->second.inside;
        left_.notify_all();
    }

  private:
    struct Place {
        Handover* handover;
        int inside;
    };
    std::mutex mutex_;
    std::condition_variable left_;
    std::unordered_map<uint64_t, Place> places_;  // by ticket
    uint64_t last_ = 0;
};

// Never destroyed: a stream may call while the process ends.
Tickets& tickets() {
    static Tickets& all = *new Tickets;
    return all;
}

std::chrono::steady_clock::duration duration(double seconds) {
    return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

Handover::Handover(const Kernels& kernels, WorkerThreads& workers, const PartialCall& call, double timeout_s)
    : workers_(workers), kernels_(kernels), call_(call), timeout_s_(timeout_s), ticket_(tickets().add(this)) {}

void Handover::start() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    last_.at = Job::Clock::now();
    drop();
    last_.pending = true;
    try {
        if (any_keys()) submit();
        else write_nothing();
    } catch (const std::exception& error) {
        refuse(error.what());
    }
}

void Handover::submit() {
    const auto ended = std::remove_if(dropped_.begin(), dropped_.end(), [](const auto& job) { return job->done(); });
    dropped_.erase(ended, dropped_.end());
    dropped_.reserve(dropped_.size() + 1);  // so that drop() allocates nothing
    call_.gate = std::make_shared<Gate>();
    nothing_ = false;
    last_.job = workers_.submit(make_partial_work(kernels_, call_, workers_.count()));
}

void Handover::wait() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    finish(Job::Clock::now(), "waited for");
}

bool Handover::poll() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    if (last_.job && !last_.job->done() && Job::Clock::now() < last_.at + duration(timeout_s_)) return false;
    finish(last_.at, "started");
    return true;
}

// Ends the call, `timeout_s` after `begin` at the latest. `begun` says in an error what happened at `begin`.
void Handover::finish(Job::Clock::time_point begin, const char* begun) {
    if (!last_.pending) refuse("it was waited for before it was started");
    last_.pending = false;
    const bool done = !last_.job || last_.job->wait_until(begin + duration(timeout_s_));
    times_ = {};
    times_.waited_s = std::chrono::duration<double>(Job::Clock::now() - begin).count();
    if (!done) return time_out(begun);
    if (last_.job) times_.started_s = last_.job->started_s(), times_.ran_s = last_.job->ran_s();
    last_.job.reset();
}

// Gives up a start that was not waited for, or not in time. Its tasks write no more.
void Handover::drop() {
    if (!last_.job) return;
    call_.gate->shut();
    if (!last_.job->done()) dropped_.push_back(std::move(last_.job));
    last_.job.reset();
}

void Handover::time_out(const char* begun) {
    char reason[200];
    std::snprintf(reason, sizeof reason,
                  "%lld of %lld tasks were left, and %lld had begun, %.3g s after it was %s, where timeout_s is %g",
                  (long long)last_.job->left(), (long long)last_.job->tasks(), (long long)last_.job->begun(),
                  times_.waited_s, begun, timeout_s_);
    drop();
    refuse(reason);
}

void Handover::refuse(const char* reason) {
    if (!*failure_) std::snprintf(failure_, sizeof failure_, "call %lld failed: %s", (long long)calls_, reason);
    write_nothing();
}

bool Handover::any_keys() const {
    for (int64_t row = 0; row < call_.B * call_.H; ++row) {
        const int32_t* length = call_.length.row(row / call_.H, row % call_.H);
        if (std::any_of(length, length + call_.N, [](int32_t tokens) { return tokens != 0; })) return true;
    }
    return false;
}

void Handover::write_nothing() {
    if (nothing_) return;
    const int64_t heads = call_.B * call_.H * call_.G;
    std::fill_n(call_.out, heads * call_.D, 0.0f);
    std::fill_n(call_.lse, heads, -std::numeric_limits<float>::infinity());
    if (call_.mean_key) std::fill_n(call_.mean_key, heads * call_.D, 0.0f);
    nothing_ = true;
}

void Handover::close() {
    tickets().remove(ticket_);
    drop();
    for (const auto& job : dropped_) job->wait();
    dropped_.clear();
}

std::string Handover::failure() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
}

void Handover::forget_failure() {
    std::lock_guard<std::mutex> lock(mutex_);
    *failure_ = 0;
}

HandoverTimes Handover::times() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return times_;
}

}  // namespace scout

using namespace scout;

void scout_handover_start(void* ticket) {
    tickets().enter(reinterpret_cast<uintptr_t>(ticket), [](Handover& handover) { handover.start(); });
}

void scout_handover_wait(void* ticket) {
    tickets().enter(reinterpret_cast<uintptr_t>(ticket), [](Handover& handover) { handover.wait(); });
}

int scout_handover_poll(void* ticket) {
    bool ended = true;
    tickets().enter(reinterpret_cast<uintptr_t>(ticket), [&](Handover& handover) { ended = handover.poll(); });
    return ended;
}
