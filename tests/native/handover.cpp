// Handovers, called by threads that stand for streams: what a call wrote must be seen by the thread that waited for it,
// and a dropped call must write no more.
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

// As a stream calls them.
void start(const Handover& handover) { scout_handover_start(reinterpret_cast<void*>(handover.ticket())); }
void wait(const Handover& handover) { scout_handover_wait(reinterpret_cast<void*>(handover.ticket())); }

void check_failure(const Handover& handover, const std::string& begins) {
    const std::string failure = handover.failure();
    if (failure.compare(0, begins.size(), begins) == 0 && failure.empty() == begins.empty()) return;
    std::fprintf(stderr, "handover: \"%s\" instead of \"%s\"\n", failure.c_str(), begins.c_str());
    std::exit(1);
}

void check(bool right, const char* what) {
    if (!right) fail(what, "handover", 0, 1);
}

void replay(const Kernels& kernels, WorkerThreads& workers) {
    Far far;
    Handover handover(kernels, workers, far.call(), 60);
    for (int round = 0; round < 50; ++round) {
        for (int64_t i = 0; i < far.length.size(); ++i) far.length[i] = int32_t(far.dice.below(Far::P + 1));
        start(handover);
        wait(handover);
        check_failure(handover, "");
        check(far.is_right(kernels, workers), "replayed call");
    }
    far.index[7] = Far::S, far.length[7] = 1;
    start(handover);
    wait(handover);
    check_failure(handover, "call 51 failed: block index 60");
    check(far.is_nothing(), "result of a failed call");
}

// The results of a dropped call are read here while its job still runs: no task may write them.
void time_out(const Kernels& kernels) {
    WorkerThreads workers(2, 1e-3);
    Far far;
    Handover handover(kernels, workers, far.call(), 1e-5);
    for (int round = 0; round < 30; ++round) {
        start(handover);
        std::this_thread::sleep_for(std::chrono::microseconds(100 * (round % 15)));
        wait(handover);
        if (handover.failure().empty()) check(far.is_right(kernels, workers), "call in time");
        else check(far.is_nothing(), "result of a late call");
        handover.forget_failure();
        start(handover);  // and dropped by the next
    }
}

// Several late calls at a time, some of whose tasks run when they are dropped.
void time_out_together(const Kernels& kernels) {
    WorkerThreads workers(2, 0);
    std::vector<std::unique_ptr<Far>> fars;
    std::vector<std::unique_ptr<Handover>> handovers;
    for (int i = 0; i < 4; ++i) {
        fars.push_back(std::make_unique<Far>());
        handovers.push_back(std::make_unique<Handover>(kernels, workers, fars.back()->call(), 1e-7));
    }
    for (int round = 0; round < 50; ++round) {
        for (const auto& handover : handovers) start(*handover);
        for (int i = 4; i-- > 0;) {
            wait(*handovers[i]);
            if (!handovers[i]->failure().empty()) check(fars[i]->is_nothing(), "result of a call dropped at work");
            handovers[i]->forget_failure();
        }
    }
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

// A stream that goes on calling a handover that is gone.
void outlive(const Kernels& kernels, WorkerThreads& workers) {
    for (int round = 0; round < 30; ++round) {
        auto far = std::make_unique<Far>();
        auto handover = std::make_unique<Handover>(kernels, workers, far->call(), 60);
        void* ticket = reinterpret_cast<void*>(handover->ticket());
        std::thread stream([ticket] {
            for (int i = 0; i < 60; ++i) scout_handover_start(ticket), scout_handover_wait(ticket);
        });
        std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
        handover.reset();
        far.reset();
        stream.join();
    }
}

}  // namespace

void test_handovers() {
    const Kernels& kernels = *supported_kernels().back();
    for (const int threads : {1, 3}) {
        WorkerThreads workers(threads, 0);
        replay(kernels, workers);
        outlive(kernels, workers);
        std::thread other([&] { replay(kernels, workers); });
        replay(kernels, workers);
        other.join();
    }
    time_out(kernels);
    time_out_together(kernels);
    shut_a_gate();
}

}  // namespace testing
