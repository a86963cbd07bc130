// A fixed set of threads that work through jobs in the order they were submitted. Knows nothing of attention.
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

namespace scout {

// Independent tasks, numbered from 0, that may run at the same time on different threads.
class Work {
  public:
    virtual ~Work() = default;
    virtual int64_t tasks() const = 0;
    virtual int64_t threads() const = 0;  // that it pays to share the tasks among
    virtual void run(int64_t task) noexcept = 0;
};

// Work on its way. Tasks are claimed by whoever is free: the pool's threads, and the thread that waits.
class Job {
  public:
    using Clock = std::chrono::steady_clock;

    // `delay_s`: seconds that the first task begins by sleeping.
    Job(std::unique_ptr<Work> work, double delay_s);

    int64_t tasks() const { return tasks_; }
    bool run_one();  // claims a task and runs it; false when all are claimed
    bool done() const { return done_.load(std::memory_order_acquire); }
    void wait();     // runs the tasks that nobody has claimed, then sleeps until the last one ends
    bool wait_until(Clock::time_point deadline);  // the same, but begins no task and sleeps no more then; whether done
    int64_t begun() const;                        // tasks that somebody has claimed
    int64_t left() const { return left_.load(std::memory_order_relaxed); }  // tasks that have not ended
    double started_s() const;  // on the steady clock; valid once done
    double ran_s() const;  // from the first task's start to the last task's end, in seconds; valid once done

  private:
    const std::unique_ptr<Work> work_;
    const int64_t tasks_;
    const double delay_s_;
    std::atomic<int64_t> next_{0}, left_;
    std::atomic<bool> done_;
    Clock::time_point started_, ended_;
    std::mutex mutex_;
    std::condition_variable ended_signal_;
};

class Pool {
  public:
    Pool(int threads, double delay_s);
    ~Pool() { close(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // `helped`: the caller will wait at once, and so is one of the threads the job is for.
    // Throws std::logic_error after close().
    std::shared_ptr<Job> submit(std::unique_ptr<Work> work, bool helped = false);
    // Finishes what was submitted and ends the threads; a second call does nothing.
    void close();
    int threads() const { return threads_; }

  private:
    void serve();
    std::shared_ptr<Job> next_job();

    const int threads_;
    const double delay_s_;
    std::mutex mutex_;
    std::condition_variable submitted_;
    std::deque<std::shared_ptr<Job>> queue_;
    std::atomic<bool> waiting_{false};  // whether the queue holds anything; written under the mutex
    bool closed_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace scout
