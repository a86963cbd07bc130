#include "handover.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <limits>
#include <unordered_map>

namespace scout {
namespace {

// Which handover a ticket is for, and how many calls are inside it. A captured graph can be replayed at any time, so
// nobody knows how many calls are still to come: they hold a number, and look here whether it still means something.
class Tickets {
  public:
    uint64_t add(Handover* handover) {
        std::lock_guard<std::mutex> lock(mutex_);
        places_[++last_] = {handover, 0};
        return last_;
    }

    // Returns when nobody is inside.
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
    std::unordered_map<uint64_t, Place> places_;
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

Handover::Handover(const Kernels& kernels, Pool& pool, const PartialCall& call, double timeout_s)
    : pool_(pool), kernels_(kernels), call_(call), timeout_s_(timeout_s), ticket_(tickets().add(this)) {}

void Handover::start() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    last_start_ = Job::Clock::now();
    drop();
    started_ = true;
    try {
        if (any_keys()) submit();
        else write_nothing();
    } catch (const std::exception& error) {
        refuse(error.what());
    }
}

void Handover::submit() {
    late_.erase(std::remove_if(late_.begin(), late_.end(), [](const auto& job) { return job->done(); }), late_.end());
    late_.reserve(late_.size() + 1);  // so that dropping needs no memory
    call_.gate = std::make_shared<Gate>();
    nothing_ = false;
    job_ = pool_.submit(plan_partial(kernels_, call_, pool_.threads()));
}

void Handover::wait() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    finish(Job::Clock::now(), "waited for");
}

bool Handover::poll() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    if (job_ && !job_->done() && Job::Clock::now() < last_start_ + duration(timeout_s_)) return false;
    finish(last_start_, "started");
    return true;
}

// `begun`: what happened at `begin`.
void Handover::finish(Job::Clock::time_point begin, const char* begun) {
    if (!started_) refuse("it was waited for before it was started");
    started_ = false;
    const bool done = !job_ || job_->wait_until(begin + duration(timeout_s_));
    times_ = {};
    times_.waited_s = std::chrono::duration<double>(Job::Clock::now() - begin).count();
    if (!done) return be_late(begun);
    if (job_) times_.started_s = job_->started_s(), times_.ran_s = job_->ran_s();
    job_.reset();
}

// A start that nobody waited for: of a step that was broken off, or whose wait came too late.
void Handover::drop() {
    if (!job_) return;
    call_.gate->shut();
    if (!job_->done()) late_.push_back(std::move(job_));
    job_.reset();
}

void Handover::be_late(const char* begun) {
    char reason[200];
    std::snprintf(reason, sizeof reason,
                  "%lld of %lld tasks were left, and %lld had begun, %.3g s after it was %s, where timeout_s is %g",
                  (long long)job_->left(), (long long)job_->tasks(), (long long)job_->begun(), times_.waited_s,
                  begun, timeout_s_);
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
    for (const auto& job : late_) job->wait();
    late_.clear();
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
