// A far call that a device's stream starts and waits for. The addresses of its arguments are fixed when it is made, and
// their content is read at every start. No Python and no CUDA is needed: a stream calls the two C functions below.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/worker_threads.h"
#include "tasks/calls.h"

namespace scout {

// Times of the last call that was waited for. started_s is on the steady clock; it and ran_s are 0 without keys.
struct HandoverTimes {
    double started_s = 0, ran_s = 0, waited_s = 0;
};

class Handover {
  public:
    // The memory of `call` and `workers` must live until close() has returned.
    Handover(const Kernels& kernels, WorkerThreads& workers, const PartialCall& call, double timeout_s);
    ~Handover() { close(); }
    Handover(const Handover&) = delete;
    Handover& operator=(const Handover&) = delete;

    // Makes the call of what the tables hold now and submits it. An earlier call that was not waited for is dropped.
    void start() noexcept;
    // Waits until the call is done, and runs tasks that no thread has begun. Drops the call if it is not done in time.
    // A call that was refused or dropped has failed, and leaves its results as those of no keys.
    void wait() noexcept;
    // Ends the call as `wait` does, but only if it is done or its time since the start is over. Returns whether it
    // ended.
    bool poll() noexcept;
    // Returns when no task of it runs. After that, a stream's calls of its ticket do nothing.
    void close();

    // The argument of the C functions: a number that is never used twice, since a stream may outlive the handover.
    uint64_t ticket() const { return ticket_; }
    // These wait for a call that is under way.
    std::string failure() const;  // the first one since forget_failure(); empty where there is none
    void forget_failure();
    HandoverTimes times() const;

  private:
    void submit();
    void drop();
    void refuse(const char* reason);
    void finish(Job::Clock::time_point begin, const char* begun);
    void time_out(const char* begun);
    bool any_keys() const;
    void write_nothing();

    struct Start {
        bool pending = false;  // not waited for yet
        Job::Clock::time_point at;
        std::shared_ptr<Job> job;  // null where it had no keys, or was refused
    };

    WorkerThreads& workers_;
    const Kernels& kernels_;
    PartialCall call_;
    const double timeout_s_;
    const uint64_t ticket_;
    mutable std::mutex mutex_;  // held from the beginning of every call to its end
    Start last_;
    bool nothing_ = false;  // the results are those of no keys
    std::vector<std::shared_ptr<Job>> dropped_;  // jobs that were given up, and perhaps still read memory
    int64_t calls_ = 0;
    char failure_[240] = "";
    HandoverTimes times_;
};

}  // namespace scout

// For a stream to call, in order. They throw nothing and take no lock of Python's. A ticket whose handover is gone does
// nothing.
extern "C" {
void scout_handover_start(void* ticket);
void scout_handover_wait(void* ticket);
int scout_handover_poll(void* ticket);  // 0 while the call is under way, else 1
}
