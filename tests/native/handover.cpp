// Handovers, called by threads that stand for devices: what a call wrote must be seen by the thread that waited for its
// answer, and a call that was given up must write no more. And the thread that looks for calls, by itself.
#include <atomic>
#include <chrono>
#include <ctime>
#include <new>
#include <string>
#include <thread>

#include "runtime/handover.h"
#include "testing.h"

namespace testing {
namespace {

// A far partial of one sequence with lists that change, between memory that is watched.
struct Far {
    static constexpr int64_t H = 2, G = 3, D = 40, P = 16, S = 60, N = 300;
    Dice dice;
    Array<float> q = dice.numbers(H * G * D);
    Stored k{kBFloat16, S * H * P * D, dice}, v{kBFloat16, S * H * P * D, dice};
    Array<int32_t> index = dice.indices(H * N, S), length = dice.indices(H * N, P + 1);
    Array<float> out{H * G * D}, lse{H * G}, mean_key{H * G * D};

    PartialCall call() {
        PartialCall call{};
        call.q = q.data();
        call.B = 1, call.H = H, call.G = G, call.D = D, call.N = N;
        call.scale = 0.2f;
        call.layer.k = k.bytes.data(), call.layer.v = v.bytes.data();
        call.layer.k_page = call.layer.v_page = H * P * D, call.layer.k_head = call.layer.v_head = P * D;
        call.layer.pages = S, call.layer.positions = P, call.layer.dtype = kBFloat16;
        call.index = {index.data(), H * N, N}, call.length = {length.data(), H * N, N};
        call.out = out.data(), call.lse = lse.data(), call.mean_key = mean_key.data();
        return call;
    }

    // Whether the results are those of the plain call.
    bool is_right(const Kernels& kernels, WorkerThreads& workers) {
        Array<float> want(out.size()), want_lse(lse.size()), want_key(out.size());
        PartialCall plain = call();
        plain.out = want.data(), plain.lse = want_lse.data(), plain.mean_key = want_key.data();
        finish(workers, make_partial_work(kernels, plain, workers.count()));
        return !std::memcmp(out.data(), want.data(), out.size() * 4) &&
               !std::memcmp(lse.data(), want_lse.data(), lse.size() * 4) &&
               !std::memcmp(mean_key.data(), want_key.data(), out.size() * 4);
    }

    bool is_nothing() {
        for (int64_t i = 0; i < out.size(); ++i)
            if (out[i] != 0 || mean_key[i] != 0 || lse[i / D] != -INFINITY) return false;
        return true;
    }
};

using Clock = std::chrono::steady_clock;

void check(bool right, const char* what) {
    if (!right) fail(what, "handover", 0, 1);
}

// Flags, and the device that raises and awaits them.
struct Device {
    uint32_t called = 0, answered = 0;
    int64_t waited_ns = 0;

    Flags flags() { return {&called, &answered, &waited_ns}; }
    uint32_t raise() {
        __atomic_store_n(&called, called + 1, __ATOMIC_RELEASE);
        return called;
    }
    // Whether the last call was answered in time.
    bool wait(double seconds = 60) {
        const auto end = Clock::now() + std::chrono::duration<double>(seconds);
        while (__atomic_load_n(&answered, __ATOMIC_ACQUIRE) != called) {
            if (Clock::now() > end) return false;
            std::this_thread::yield();
        }
        return true;
    }
};

void check_failure(const Handover& handover, const std::string& begins) {
    const std::string failure = handover.report().failure;
    if (failure.compare(0, begins.size(), begins) == 0 && failure.empty() == begins.empty()) return;
    std::fprintf(stderr, "handover: \"%s\" instead of \"%s\"\n", failure.c_str(), begins.c_str());
    std::exit(1);
}

void replay(const Kernels& kernels, WorkerThreads& workers, PollThread& thread) {
    Far far;
    Device device;
    Handover handover(kernels, workers, thread, far.call(), device.flags());
    for (int round = 0; round < 50; ++round) {
        for (int64_t i = 0; i < far.length.size(); ++i) far.length[i] = int32_t(far.dice.below(Far::P + 1));
        device.raise();
        check(device.wait(), "answer");
        const HandoverReport report = handover.report();
        check(report.failure.empty() && report.started_s > 0 && report.ran_s > 0, "report");
        check(far.is_right(kernels, workers), "replayed call");
    }
    for (int64_t i = 0; i < far.length.size(); ++i) far.length[i] = 0;
    device.raise();
    check(device.wait() && far.is_nothing(), "call without keys");
    check(handover.report().started_s == 0, "time of a call without keys");
    far.index[7] = Far::S, far.length[7] = 1;
    device.raise();
    check(device.wait() && far.is_nothing(), "result of a failed call");
    check_failure(handover, "block index 60");
    handover.forget_failure();
    check_failure(handover, "");
}

// The results of a call that was given up are read here while its job still runs: no task may write or answer.
void give_up(const Kernels& kernels, PollThread& thread) {
    WorkerThreads workers(2, 1e-3);
    Far far;
    Device device;
    Handover handover(kernels, workers, thread, far.call(), device.flags());
    for (int round = 0; round < 30; ++round) {
        const uint32_t number = device.raise();
        if (device.wait(1e-4 * (round % 15))) {
            check(far.is_right(kernels, workers), "call in time");
        } else {
            handover.give_up(number);
            const bool answered = device.wait(0);
            far.lse[0] = 7;
            check(device.wait(2e-3) == answered, "answer to a call that was given up");
            check(far.lse[0] == 7, "result of a call that was given up");
        }
        device.raise();  // and given up by the next
    }
    check(device.wait() && far.is_right(kernels, workers), "the last call");
}

// Several calls at a time, some of whose tasks run when they are given up.
void give_up_together(const Kernels& kernels, PollThread& thread) {
    WorkerThreads workers(2, 0);
    std::vector<std::unique_ptr<Far>> fars;
    std::vector<std::unique_ptr<Device>> devices;
    std::vector<std::unique_ptr<Handover>> handovers;
    for (int i = 0; i < 4; ++i) {
        fars.push_back(std::make_unique<Far>());
        devices.push_back(std::make_unique<Device>());
        handovers.push_back(std::make_unique<Handover>(kernels, workers, thread, fars[i]->call(), devices[i]->flags()));
    }
    for (int round = 0; round < 50; ++round) {
        for (const auto& device : devices) device->raise();
        for (int i = 4; i-- > 0;)
            if (!devices[i]->wait(1e-5)) handovers[i]->give_up(devices[i]->called);
    }
    for (const auto& device : devices) device->raise();
    for (int i = 0; i < 4; ++i)
        check(devices[i]->wait() && fars[i]->is_right(kernels, workers), "call after others were given up");
}

// What a task writes inside a gate needs no other lock, and is not written after the gate is shut.
void shut_a_gate() {
    for (int round = 0; round < 50; ++round) {
        Gate gate;
        int64_t value = 0;
        std::thread writer([&] {
            for (; gate.enter(); gate.leave()) ++value;
        });
        std::this_thread::sleep_for(std::chrono::microseconds(10 * round));
        gate.shut();
        value = -1;
        writer.join();
        check(value == -1 && gate.is_shut(), "gate");
    }
}

// A device that goes on calling a handover that is gone.
void outlive(const Kernels& kernels, WorkerThreads& workers, PollThread& thread) {
    for (int round = 0; round < 30; ++round) {
        auto far = std::make_unique<Far>();
        Device device;
        auto handover = std::make_unique<Handover>(kernels, workers, thread, far->call(), device.flags());
        std::atomic<bool> gone{false};
        std::thread stream([&] {
            while (!gone) device.raise(), device.wait(1e-3);
        });
        std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
        handover.reset();
        far.reset();
        gone = true;
        stream.join();
    }
}

// What is counted, and what breaks the thread.
struct Counter : Callee {
    std::atomic<uint32_t> last{0};
    std::atomic<bool> breaks{false};
    void called(uint32_t number) override {
        if (breaks) throw std::bad_alloc();
        last = number;
    }
};

template <class Ready>
bool soon(Ready ready) {
    for (const auto end = Clock::now() + std::chrono::seconds(20); !ready(); std::this_thread::yield())
        if (Clock::now() > end) return false;
    return true;
}

void poll() {
    PollThread thread;
    Device device;
    Counter counter;
    device.raise();
    thread.add(&device.called, counter);
    thread.begin();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    check(counter.last == 0, "what was raised before is no call");
    device.raise();
    check(soon([&] { return counter.last == 2; }), "call in a step");
    thread.end();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    device.raise();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    check(counter.last == 2, "call between steps");
    thread.begin();
    check(soon([&] { return counter.last == 3; }), "a call that was made before the step began");
    counter.breaks = true;
    device.raise();
    check(soon([&] { return thread.failure() == "std::bad_alloc"; }), "failure of the thread");
    counter.breaks = false;
    thread.begin();
    check(thread.failure().empty(), "failure after another step began");
    device.raise();
    check(soon([&] { return counter.last == 5; }), "call after the thread had ended");
    thread.remove(counter);
    device.raise();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    check(counter.last == 5, "call after its callee was removed");
    thread.close();
    thread.close();
    thread.begin();
}

// Between steps the thread takes no time, and when a step seems broken off, little.
void sleep_between_steps() {
    PollThread thread;
    thread.begin();
    std::this_thread::sleep_for(std::chrono::milliseconds(1300));
    const std::clock_t broken_off = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    check(std::clock() - broken_off < CLOCKS_PER_SEC / 10, "time of a step that was broken off");
    thread.end();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::clock_t asleep = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    check(std::clock() - asleep < CLOCKS_PER_SEC / 100, "time between steps");
}

}  // namespace

void test_handovers() {
    const Kernels& kernels = *supported_kernels().back();
    poll();
    sleep_between_steps();
    PollThread thread;
    thread.begin();
    for (const int threads : {1, 3}) {
        WorkerThreads workers(threads, 0);
        replay(kernels, workers, thread);
        outlive(kernels, workers, thread);
        std::thread other([&] { replay(kernels, workers, thread); });
        replay(kernels, workers, thread);
        other.join();
    }
    give_up(kernels, thread);
    give_up_together(kernels, thread);
    shut_a_gate();
}

}  // namespace testing
