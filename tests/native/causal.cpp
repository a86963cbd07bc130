// Causal attention of a prompt.
#include <algorithm>

#include "testing.h"

namespace testing {
namespace {

struct Shape {
    int64_t n, T, H, G, D;
};

// Head dims around vectors, rows around groups of rows, keys around tiles, and prompts that are split over tasks.
constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 64}, {7, 7, 2, 3, 64}, {5, 70, 2, 2, 7}, {33, 64, 1, 7, 80}, {65, 129, 2, 4, 128}, {70, 200, 3, 3, 16},
};

// What a query head of a position attends to.
std::vector<double> attend(const Shape& s, const Stored& q, const Stored& k, const Stored& v, int64_t row, double scale) {
    const int64_t h = row / s.G % s.H, last = s.T - s.n + row / (s.G * s.H);
    std::vector<double> scores, out(s.D);
    for (int64_t t = 0; t <= last; ++t) {
        double score = 0;
        for (int64_t d = 0; d < s.D; ++d) score += q.value[row * s.D + d] * k.value[(t * s.H + h) * s.D + d];
        scores.push_back(score * scale);
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (int64_t t = 0; t <= last; ++t) {
        const double weight = std::exp(scores[t] - most);
        sum += weight;
        for (int64_t d = 0; d < s.D; ++d) out[d] += weight * v.value[(t * s.H + h) * s.D + d];
    }
    for (double& x : out) x /= sum;
    return out;
}

void check(const Kernels& kernels, WorkerThreads& workers, const Shape& s, DType dtype) {
    Dice dice;
    const Stored q(dtype, s.n * s.H * s.G * s.D, dice), k(dtype, s.T * s.H * s.D, dice), v(dtype, s.T * s.H * s.D, dice);
    Array<float> out(s.n * s.H * s.G * s.D);
    const CausalCall call{dtype, q.bytes.data(), k.bytes.data(), v.bytes.data(), s.n, s.T, s.H, s.G, s.D, 0.3f,
                          out.data()};
    finish(workers, make_causal_work(kernels, call, workers.count()));
    for (int64_t row = 0; row < s.n * s.H * s.G; ++row) {
        const std::vector<double> want = attend(s, q, k, v, row, 0.3);
        for (int64_t d = 0; d < s.D; ++d)
            expect("attention of a prompt", kernels.name, out[row * s.D + d], want[d], dtype == kBFloat16 ? 1e-2 : 2e-5);
    }
}

}  // namespace

void test_causal(const Kernels& kernels, WorkerThreads& workers) {
    for (const DType dtype : kEveryDType)
        for (const Shape& shape : kShapes) check(kernels, workers, shape, dtype);
}

}  // namespace testing
