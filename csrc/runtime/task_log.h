// When threads ran tasks of jobs, for timelines: each thread notes for itself, and whoever asks takes what was noted.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

namespace scout {

// Tasks of one job that one thread ran one after the other.
struct TaskTimes {
    using Time = std::chrono::steady_clock::time_point;

    int64_t job;
    int thread;  // of the workers, from 0; any other thread is kOtherThread
    Time start, end;
};

constexpr int kOtherThread = -1;

class TaskLog {
  public:
    explicit TaskLog(int threads) : noted_(threads + 1) {}

    // A thread has run a task.
    void note(const TaskTimes& task) {
        Noted& noted = noted_[task.thread + 1];
        std::lock_guard<std::mutex> lock(noted.mutex);
        auto& times = noted.times;
        if (!times.empty() && times.back().job == task.job)
            times.back().end = task.end;
        else
            times.push_back(task);
    }

    // What was noted since it was last taken, thread by thread. Tasks of a job that is done are there.
    std::vector<TaskTimes> take() {
        std::vector<TaskTimes> all;
        for (Noted& noted : noted_) {
            std::lock_guard<std::mutex> lock(noted.mutex);
            all.insert(all.end(), noted.times.begin(), noted.times.end());
            noted.times.clear();
        }
        return all;
    }

  private:
    struct Noted {
        std::mutex mutex;  // its thread's alone, but for take()
        std::vector<TaskTimes> times;
    };
    std::vector<Noted> noted_;
};

}  // namespace scout
