// One far partial that a device's stream starts and waits for: its arguments' addresses are fixed when it is made, and
// what they hold is read at every start. No Python, and no CUDA: a stream is whoever calls the two C functions.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gate.h"
#include "plan.h"
#include "pool.h"

namespace scout {

// Of the last call that was waited for; started_s is on the steady clock, and both it and ran_s are 0 without keys.
struct HandoverTimes {
    double started_s = 0, ran_s = 0, waited_s = 0;
};

class Handover {
  public:
    // `call`'s memory and `pool` must live until close() has returned.
    Handover(const Kernels& kernels, Pool& pool, const PartialCall& call, double timeout_s);
    ~Handover() { close(); }
    Handover(const Handover&) = delete;
    Handover& operator=(const Handover&) = delete;

    // Plans the call from what the tables hold now and submits it. A call that nobody has waited for is dropped.
    void start() noexcept;
    // Waits until the call is done, and helps with tasks that nobody has begun; drops it when it is not done in time.
    // What was refused or is late has failed, and leaves its results as those of no keys.
    void wait() noexcept;
    // As wait, for whoever must not wait: ends the call if it is done, or not done in time since its start. Whether it has.
    bool poll() noexcept;
    // Returns when nothing of it runs any more. What a stream still holds of it does nothing then.
    void close();

    // What the C functions take: a number that is never given twice, so that a stream may outlive what it calls.
    uint64_t ticket() const { return ticket_; }
    // These wait for a call that is under way.
    std::string failure() const;  // the first one since it was last forgotten; empty where there is none
    void forget_failure();
    HandoverTimes times() const;

  private:
    void submit();
    void drop();
    void refuse(const char* reason);
    void finish(Job::Clock::time_point begin, const char* begun);
    void be_late(const char* begun);
    bool any_keys() const;
    void write_nothing();

    Pool& pool_;
    const Kernels& kernels_;
    PartialCall call_;
    const double timeout_s_;
    const uint64_t ticket_;
    mutable std::mutex mutex_;       // held by every call, all along
    bool started_ = false;           // and not waited for yet
    bool nothing_ = false;           // the results are those of no keys
    std::shared_ptr<Job> job_;       // of the last start; null where it had no keys, or was refused
    std::vector<std::shared_ptr<Job>> late_;  // dropped, and perhaps still reading
    int64_t calls_ = 0;
    Job::Clock::time_point last_start_;
    char failure_[240] = "";
    HandoverTimes times_;
};

}  // namespace scout

// For a stream to call, in order. Nothing is thrown, no lock of Python's is taken, and a ticket whose handover is gone
// is passed over.
extern "C" {
void scout_handover_start(void* ticket);
void scout_handover_wait(void* ticket);
int scout_handover_poll(void* ticket);  // 0 while the call is under way
}
