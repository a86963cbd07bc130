// Worker threads, used from many threads at once: what a job wrote must be seen by the thread that waited for it.
#include <thread>

#include "testing.h"

namespace testing {
namespace {

// Writes each task's number to its place, without a lock: a wait that does not synchronise is a race.
class Numbering final : public Work {
  public:
    Numbering(int64_t tasks, std::vector<int64_t>& out) : tasks_(tasks), out_(out) { out.assign(tasks, -1); }
    int64_t tasks() const override { return tasks_; }
    int64_t threads() const override { return tasks_; }
    void run(int64_t task) noexcept override { out_[task] = task; }

  private:
    const int64_t tasks_;
    std::vector<int64_t>& out_;
};

// A job, and where it writes.
struct Order {
    std::vector<int64_t> out;
    std::shared_ptr<Job> job;

    void submit(WorkerThreads& workers, int64_t tasks, bool helped) {
        job = workers.submit(std::make_unique<Numbering>(tasks, out), helped);
    }
    void take() {
        job->wait();
        for (size_t i = 0; i < out.size(); ++i)
            if (out[i] != int64_t(i)) fail("task", "workers", double(out[i]), double(i));
        if (!out.empty() && (job->ran_s() < 0 || job->started_s() <= 0)) fail("time", "workers", job->ran_s(), 0);
    }
};

// Several jobs in flight, waited for last to first.
void order_and_wait(WorkerThreads& workers, int rounds) {
    for (int round = 0; round < rounds; ++round) {
        Order orders[6];
        for (int i = 0; i < 6; ++i) orders[i].submit(workers, i * i, i % 2 == 0);
        for (int i = 6; i-- > 0;) orders[i].take();
    }
}

// A job that one thread submits and several wait for.
void wait_together(WorkerThreads& workers) {
    Order order;
    order.submit(workers, 40, false);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&order] { order.take(); });
    for (std::thread& thread : threads) thread.join();
}

// What is recorded of a job is there once it was waited for, and lies in the time that the job took.
void record(int count) {
    WorkerThreads workers(count, 0);
    workers.set_recording(true);
    for (int round = 0; round < 100; ++round) {
        Order order;
        const auto before = Job::Clock::now();
        order.submit(workers, 20, round % 2 == 0);
        order.take();
        const auto times = workers.take_tasks();
        const auto after = Job::Clock::now();
        if (times.empty()) fail("tasks", "recorded", 0, 1);
        for (const TaskTimes& one : times) {
            const bool named = one.job == round && one.thread >= kOtherThread && one.thread < count;
            if (!named || one.start < before || one.end < one.start || after < one.end)
                fail("times", "recorded", double(one.job), round);
        }
    }
    workers.set_recording(false);
    Order order;
    order.submit(workers, 20, false);
    order.take();
    if (!workers.take_tasks().empty()) fail("tasks", "not recorded", 1, 0);
}

// Recording goes on and off, and is taken, while jobs run; some end after their workers.
void record_in_flight() {
    Order orders[8];
    {
        WorkerThreads workers(3, 0);
        std::thread taking([&workers] {
            for (int i = 0; i < 200; ++i) workers.set_recording(i % 3 != 0), workers.take_tasks();
        });
        order_and_wait(workers, 50);
        taking.join();
        workers.set_recording(true);
        for (Order& order : orders) order.submit(workers, 1, true);
    }
    for (Order& order : orders) order.take();
}

void close_in_flight() {
    Order orders[8];
    {
        WorkerThreads workers(3, 1e-4);
        for (Order& order : orders) order.submit(workers, 9, false);
    }
    for (Order& order : orders) order.take();
}

}  // namespace

void test_worker_threads() {
    for (const int count : {1, 2, 4}) {
        WorkerThreads workers(count, 0);
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i) threads.emplace_back([&workers] { order_and_wait(workers, 200); });
        for (std::thread& thread : threads) thread.join();
        for (int i = 0; i < 100; ++i) wait_together(workers);
    }
    for (int i = 0; i < 20; ++i) close_in_flight();
    for (const int count : {1, 3}) record(count);
    record_in_flight();
}

}  // namespace testing
