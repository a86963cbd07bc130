#include "runtime/handover.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace scout {
namespace {

void answer(uint32_t* answered, uint32_t number) { __atomic_store_n(answered, number, __ATOMIC_RELEASE); }

// Work whose end is told to the device by the thread that ran its last task: no other thread has to wake for that.
class AnsweringWork final : public Work {
  public:
    AnsweringWork(std::unique_ptr<Work> work, std::shared_ptr<Gate> gate, uint32_t* answered, uint32_t number)
        : work_(std::move(work)), gate_(std::move(gate)), answered_(answered), number_(number) {}

    int64_t tasks() const override { return work_->tasks(); }
    int64_t threads() const override { return work_->threads(); }
    void run(int64_t task) noexcept override { work_->run(task); }
    void end() noexcept override {
        if (!gate_->enter()) return;  // a later call may have been answered
        answer(answered_, number_);
        gate_->leave();
    }

  private:
    const std::unique_ptr<Work> work_;
    const std::shared_ptr<Gate> gate_;
    uint32_t* const answered_;
    const uint32_t number_;
};

}  // namespace

Handover::Handover(const Kernels& kernels, WorkerThreads& workers, PollThread& thread, const PartialCall& call,
                   Flags flags)
    : workers_(workers), thread_(thread), kernels_(kernels), call_(call), flags_(flags) {
    thread_.add(flags_.called, *this);
}

void Handover::called(uint32_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (number == number_) return;  // it was given up before it was seen
    drop();
    number_ = number;
    try {
        if (any_keys()) return submit(number);
    } catch (const std::logic_error& error) {
        if (failure_.empty()) failure_ = error.what();
    }
    write_nothing();
    answer(flags_.answered, number);
}

void Handover::submit(uint32_t number) {
    const auto ended = std::remove_if(dropped_.begin(), dropped_.end(), [](const auto& job) { return job->done(); });
    dropped_.erase(ended, dropped_.end());
    dropped_.reserve(dropped_.size() + 1);  // so that drop() allocates nothing
    call_.gate = std::make_shared<Gate>();
    nothing_ = false;
    auto work = make_partial_work(kernels_, call_, workers_.count());
    job_ = workers_.submit(std::make_unique<AnsweringWork>(std::move(work), call_.gate, flags_.answered, number));
}

// Gives up the last call where it has not ended. Its tasks write no more.
void Handover::drop() {
    if (!job_) return;
    call_.gate->shut();
    if (!job_->done()) dropped_.push_back(std::move(job_));
    job_.reset();
}

std::string Handover::give_up(uint32_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string reached = "the CPU had not seen the call";
    if (number_ == number) reached = "the CPU has answered by now";
    if (number_ == number && job_ && !job_->done())
        reached = std::to_string(job_->left()) + " of " + std::to_string(job_->tasks()) + " tasks were left, and " +
                  std::to_string(job_->begun()) + " had begun";
    drop();
    number_ = number;
    return reached;
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

HandoverReport Handover::report() const {
    std::lock_guard<std::mutex> lock(mutex_);
    HandoverReport report;
    report.waited_s = 1e-9 * double(__atomic_load_n(flags_.waited_ns, __ATOMIC_RELAXED));
    report.failure = failure_;
    const bool answered = __atomic_load_n(flags_.answered, __ATOMIC_ACQUIRE) == number_;
    if (!job_ || !answered) return report;  // else the job's times are there
    report.job = job_->number(), report.started_s = job_->started_s(), report.ran_s = job_->ran_s();
    return report;
}

void Handover::forget_failure() {
    std::lock_guard<std::mutex> lock(mutex_);
    failure_.clear();
}

void Handover::close() {
    thread_.remove(*this);
    std::lock_guard<std::mutex> lock(mutex_);
    drop();
    for (const auto& job : dropped_) job->wait();
    dropped_.clear();
}

}  // namespace scout
