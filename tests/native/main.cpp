// Every kernel of every instruction set that this CPU has, against plain loops; pool and handovers from many threads.
// To be built with a sanitizer, or for another architecture. Exit code 0 where nothing is wrong.
#include "testing.h"

int main() {
    using namespace testing;
    test_pool();
    test_handovers();
    for (const Kernels* kernels : supported_kernels()) {
        for (const int threads : {1, 3}) {
            Pool pool(threads, 0);
            test_partial(*kernels, pool);
            test_scores(*kernels, pool);
            test_rank(*kernels, pool);
            test_linear(*kernels, pool);
            test_reading(pool);
        }
        test_rows(*kernels);
        test_merging(*kernels);
        std::printf("%s: all right\n", kernels->name);
    }
}
