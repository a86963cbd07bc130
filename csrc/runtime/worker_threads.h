// Threads that work through jobs in the order in which they were submitted. They know nothing of attention.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/task_log.h"

namespace scout {

// Independent tasks, numbered from 0, that may run at the same time on different threads.
class Work {
  public:
    virtual ~Work() = default;
    virtual int64_t tasks() const = 0;
    virtual int64_t threads() const = 0;  // how many threads are worth waking for it
    virtual void run(int64_t task) noexcept = 0;
    virtual void end() noexcept {}  // called once, by the thread whose task was the last to end
};

// Submitted work. Worker threads and the thread that waits for the job all claim its tasks, one at a time.
class Job {
  public:
    using Clock = std::chrono::steady_clock;

    // `delay_s`: seconds that the first task begins by sleeping.   log: where its tasks are noted, under its number;
    // null where they are not.
    Job(std::unique_ptr<Work> work, double delay_s, int64_t number, std::shared_ptr<TaskLog> log);

    int64_t number() const { return number_; }
    int64_t tasks() const { return tasks_; }
    // Claims a task and runs it; false when all are claimed.   thread: of the workers, which the caller is.
    bool run_one(int thread = kOtherThread);
    bool done() const { return done_.load(std::memory_order_acquire); }
    void wait();  // runs tasks that no thread has claimed, then sleeps until the last one ends
    // Waits as `wait` does, but begins no task after the deadline, and sleeps no longer. Returns whether it is done.
    bool wait_until(Clock::time_point deadline);
    int64_t begun() const;  // tasks that were claimed
    int64_t left() const { return left_.load(std::memory_order_relaxed); }  // tasks that have not ended
    double started_s() const;  // of the first task, on the steady clock; valid once done
    double ran_s() const;      // seconds from the first task's start to the last task's end; valid once done

  private:
    const std::unique_ptr<Work> work_;
    const int64_t tasks_;
    const double delay_s_;
    const int64_t number_;
    const std::shared_ptr<TaskLog> log_;
    std::atomic<int64_t> next_{0}, left_;
    std::atomic<bool> done_;
    Clock::time_point started_, ended_;
    std::mutex mutex_;
    std::condition_variable ended_signal_;
};

class WorkerThreads {
  public:
    WorkerThreads(int count, double delay_s);
    ~WorkerThreads() { close(); }
    WorkerThreads(const WorkerThreads&) = delete;
    WorkerThreads& operator=(const WorkerThreads&) = delete;

    // `helped`: the caller will wait at once, and counts as one of the threads that the work is worth.
    // Throws std::logic_error after close().
    std::shared_ptr<Job> submit(std::unique_ptr<Work> work, bool helped = false);
    // Finishes what was submitted and ends the threads; a second call does nothing.
    void close();
    int count() const { return count_; }

    // Whether tasks of the jobs that are submitted from now on are noted.
    void set_recording(bool on) { recording_.store(on, std::memory_order_relaxed); }
    std::vector<TaskTimes> take_tasks() { return log_->take(); }

  private:
    struct Queued {
        std::shared_ptr<Job> job;
        int64_t wanted;  // threads that are still to take it
    };

    void serve(int thread);
    std::shared_ptr<Job> next_job();
    void remove_front();

    const int count_;
    const double delay_s_;
    std::mutex mutex_;
    std::condition_variable submitted_;
    std::deque<Queued> queue_;
    int64_t wanted_ = 0;                // threads that the queue's jobs want
    int64_t polling_;                   // threads that look at `waiting_`, or are about to, and need no signal
    std::atomic<bool> waiting_{false};  // whether the queue holds anything; written under the mutex
    bool closed_ = false;
    std::atomic<int64_t> submitted_jobs_{0};
    std::atomic<bool> recording_{false};
    const std::shared_ptr<TaskLog> log_;  // of jobs too, which may live longer
    std::vector<std::thread> threads_;
};

}  // namespace scout
