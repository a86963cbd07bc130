// A far call that a device makes and waits for by flags: words in memory that both see. The addresses of its arguments
// are fixed when it is made, and their content is read at every call. No Python and no CUDA is needed.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/poll_thread.h"
#include "runtime/worker_threads.h"
#include "tasks/calls.h"

namespace scout {

// The flags of one handover. `called`: the number of the device's last call.   `answered`: that of the last call whose
// results are there.   `waited_ns`: how long the device waited for its last call.
struct Flags {
    const uint32_t* called;
    uint32_t* answered;
    const int64_t* waited_ns;
};

// Of the last call. started_s is on the steady clock; it and ran_s are 0 without keys, and `job` is -1. `failure` is the
// first one since it was last forgotten, and empty where there is none.
struct HandoverReport {
    int64_t job = -1;
    double started_s = 0, ran_s = 0, waited_s = 0;
    std::string failure;
};

class Handover : public Callee {
  public:
    // The memory of `call` and `flags`, `workers` and `thread` must live until close() has returned.
    Handover(const Kernels& kernels, WorkerThreads& workers, PollThread& thread, const PartialCall& call, Flags flags);
    ~Handover() override { close(); }
    Handover(const Handover&) = delete;
    Handover& operator=(const Handover&) = delete;

    // Has the workers attend to what the tables hold now; the last of them answers. A call that was not answered yet is
    // given up. One that is refused has failed: its results are those of no keys, and it is answered at once.
    void called(uint32_t number) override;
    // Ends the last call, which the device waits for no more: its tasks write nothing from now on, and answer nothing.
    // Returns how far call `number` had come.
    std::string give_up(uint32_t number);
    // When the device has waited for the last call.
    HandoverReport report() const;
    void forget_failure();
    // Gives up the last call and returns when no task of any runs. Later calls of the device are not seen.
    void close();

  private:
    void submit(uint32_t number);
    void drop();
    bool any_keys() const;
    void write_nothing();

    WorkerThreads& workers_;
    PollThread& thread_;
    const Kernels& kernels_;
    PartialCall call_;
    const Flags flags_;
    mutable std::mutex mutex_;
    uint32_t number_ = 0;  // of the last call that was seen or given up
    std::shared_ptr<Job> job_;  // its job; null where it had no keys, was refused or given up
    bool nothing_ = false;  // the results are those of no keys
    std::vector<std::shared_ptr<Job>> dropped_;  // jobs that were given up, and perhaps still read memory
    std::string failure_;
};

}  // namespace scout
