#include "runtime/worker_threads.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/spin.h"

namespace scout {
namespace {

// A decode step submits hundreds of jobs, some of them tens of microseconds apart, and waking a sleeping thread takes
// as long. So a thread that waits polls for this long before it sleeps.
constexpr auto kPollTime = std::chrono::microseconds(100);

template <class Ready>
void poll(Ready ready) {
    const auto end = Job::Clock::now() + kPollTime;
    while (Job::Clock::now() < end && !looked(ready)) std::this_thread::yield();
}

}  // namespace

Job::Job(std::unique_ptr<Work> work, double delay_s, int64_t number, std::shared_ptr<TaskLog> log)
    : work_(std::move(work)),
      tasks_(work_->tasks()),
      delay_s_(delay_s),
      number_(number),
      log_(std::move(log)),
      left_(tasks_),
      done_(tasks_ == 0) {}

bool Job::run_one(int thread) {
    if (next_.load(std::memory_order_relaxed) >= tasks_) return false;
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return false;
    const auto start = log_ ? Clock::now() : Clock::time_point{};
    if (task == 0) {
        started_ = Clock::now();
        if (delay_s_ > 0) std::this_thread::sleep_for(std::chrono::duration<double>(delay_s_));
    }
    work_->run(task);
    if (log_) log_->note({number_, thread, start, Clock::now()});
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        ended_ = Clock::now();
        work_->end();
        std::lock_guard<std::mutex> lock(mutex_);
        done_.store(true, std::memory_order_release);
        ended_signal_.notify_all();
    }
    return true;
}

void Job::wait() {
    while (!wait_until(Clock::now() + std::chrono::hours(1))) {
    }
}

bool Job::wait_until(Clock::time_point deadline) {
    while (Clock::now() < deadline && run_one()) {
    }
    poll([this] { return done(); });
    if (done()) return true;
    std::unique_lock<std::mutex> lock(mutex_);
    return ended_signal_.wait_until(lock, deadline, [this] { return done(); });
}

int64_t Job::begun() const { return std::min(next_.load(std::memory_order_relaxed), tasks_); }

double Job::started_s() const { return std::chrono::duration<double>(started_.time_since_epoch()).count(); }

double Job::ran_s() const { return std::chrono::duration<double>(ended_ - started_).count(); }

WorkerThreads::WorkerThreads(int count, double delay_s)
    : count_(count), delay_s_(delay_s), polling_(count), log_(std::make_shared<TaskLog>(count)) {
    try {
        for (int i = 0; i < count; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        close();
        throw;
    }
}

std::shared_ptr<Job> WorkerThreads::submit(std::unique_ptr<Work> work, bool helped) {
    const int64_t wanted = std::min({work->tasks(), work->threads(), int64_t(count_)}) - helped;
    int64_t asleep = 0;
    const int64_t number = submitted_jobs_.fetch_add(1, std::memory_order_relaxed);
    const bool recording = recording_.load(std::memory_order_relaxed);
    auto job = std::make_shared<Job>(std::move(work), delay_s_, number, recording ? log_ : nullptr);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (closed_) throw std::logic_error("the workers were closed before this job was submitted");
        if (wanted > 0) queue_.push_back({job, wanted}), wanted_ += wanted;
        waiting_.store(!queue_.empty(), std::memory_order_relaxed);
        asleep = std::min(wanted, wanted_ - polling_);
    }
    for (int64_t i = 0; i < asleep; ++i) submitted_.notify_one();
    return job;
}

void WorkerThreads::close() {
    std::vector<std::thread> threads;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closed_ = true;
        threads.swap(threads_);
    }
    submitted_.notify_all();
    for (std::thread& thread : threads) thread.join();
}

// The oldest job that wants another thread; null when there is none and will be none.
std::shared_ptr<Job> WorkerThreads::next_job() {
    poll([this] { return waiting_.load(std::memory_order_relaxed); });
    std::unique_lock<std::mutex> lock(mutex_);
    --polling_;
    submitted_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return nullptr;
    const std::shared_ptr<Job> job = queue_.front().job;
    --wanted_;
    if (--queue_.front().wanted == 0) remove_front();
    return job;
}

void WorkerThreads::remove_front() {
    wanted_ -= queue_.front().wanted;
    queue_.pop_front();
    waiting_.store(!queue_.empty(), std::memory_order_relaxed);
}

void WorkerThreads::serve(int thread) {
    while (auto job = next_job()) {
        while (job->run_one(thread)) {
        }
        std::lock_guard<std::mutex> lock(mutex_);
        if (!queue_.empty() && queue_.front().job == job) remove_front();
        ++polling_;
    }
}

}  // namespace scout
