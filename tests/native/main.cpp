// Every kernel of every instruction set that this CPU has, against plain loops; worker threads and handovers, used from
// many threads. To be built with a sanitizer, or for another architecture. Exit code 0 where nothing is wrong.
#include "testing.h"

int main() {
    using namespace testing;
    test_worker_threads();
    test_handovers();
    for (const Kernels* kernels : supported_kernels()) {
        for (const int threads : {1, 3}) {
            WorkerThreads workers(threads, 0);
            test_partial(*kernels, workers);
            test_causal(*kernels, workers);
            test_scores(*kernels, workers);
            test_top_blocks(*kernels, workers);
            test_linear(*kernels, workers);
            test_layers(*kernels, workers);
            test_stored(*kernels, workers);
            test_reading(workers);
        }
        test_rows(*kernels);
        test_merging(*kernels);
        std::printf("%s: all right\n", kernels->name);
    }
}
