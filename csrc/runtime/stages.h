// Work in stages that follow one another, without waking the threads for each.
#pragma once

#include <functional>

#include "runtime/spin.h"
#include "runtime/worker_threads.h"

namespace scout {

// Every task of a stage begins after all of the stage before have ended. Tasks are claimed in order, so those are all
// under way when a thread waits for them.
class StagedWork : public Work {
  public:
    int64_t tasks() const override { return tasks_; }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        size_t at = 0;
        while (number >= stages_[at].tasks) number -= stages_[at++].tasks;
        spin_until([&] { return open_.load(std::memory_order_acquire) >= at; });
        stages_[at].run(number);
        if (ended_.fetch_add(1, std::memory_order_acq_rel) + 1 < stages_[at].last) return;
        if (stages_[at].then) stages_[at].then();
        open_.store(at + 1, std::memory_order_release);
    }

  protected:
    using Task = std::function<void(int64_t number)>;

    // `then` is what one thread does after the last task of the stage. No stage with tasks follows one
    // without.
    void add_stage(int64_t tasks, int64_t threads, Task run, std::function<void()> then = nullptr) {
        tasks_ += tasks, threads_ = std::max(threads_, threads);
        stages_.push_back({tasks, tasks_, std::move(run), std::move(then)});
    }
    void add_stage(std::shared_ptr<Work> work, std::function<void()> then = nullptr) {
        const int64_t tasks = work->tasks(), threads = work->threads();
        add_stage(tasks, threads, [work = std::move(work)](int64_t number) { work->run(number); }, std::move(then));
    }

  private:
    struct Stage {
        int64_t tasks, last;  // last: tasks of this stage and those before
        Task run;
        std::function<void()> then;
    };

    std::vector<Stage> stages_;
    int64_t tasks_ = 0, threads_ = 1;
    std::atomic<size_t> open_{0};    // the last stage that may begin
    std::atomic<int64_t> ended_{0};  // tasks
};

}  // namespace scout
