// What a layer computes of a few rows, merged partials, and reading.
#include "testing.h"

namespace testing {
namespace {

void check_linear(const Kernels& kernels, WorkerThreads& workers, int64_t M, int64_t B, int64_t I, int64_t O,
                  DType dtype) {
    Dice dice;
    const Array<float> x = dice.numbers(M * B * I);
    const Stored weight(dtype, M * O * I, dice);
    Array<float> out(M * B * O);
    const int64_t line = I * (dtype == kFloat32 ? 4 : 2);
    const LinearCall call{x.data(), M, B, I, O, {{dtype, weight.bytes.data(), O * line, line, O}}, out.data()};
    finish(workers, make_linear_work(kernels, call, workers.count()));
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = i / O, line = row / B * O + i % O;
        double want = 0;
        for (int64_t c = 0; c < I; ++c) want += x[row * I + c] * weight.value[line * I + c];
        expect("linear", kernels.name, out[i], want, 1e-5 * std::sqrt(double(I)));
    }
}

void check_norm(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> x = dice.numbers(rows * width), weight = dice.numbers(rows * width);
    Array<float> out(rows * width);
    kernels.rms_norm(x.data(), weight.data(), 0.01f, rows, width, out.data());
    for (int64_t i = 0; i < out.size(); ++i) {
        double squares = 0;
        for (int64_t c = 0; c < width; ++c) squares += std::pow(double(x[i / width * width + c]), 2);
        expect("norm", kernels.name, out[i], weight[i] * x[i] / std::sqrt(squares / width + 0.01), 1e-5);
    }
}

void check_rotate(const Kernels& kernels, int64_t heads, int64_t width) {
    Dice dice;
    const Array<float> x = dice.numbers(heads * width), cos = dice.numbers(width), sin = dice.numbers(width);
    Array<float> out(heads * width);
    kernels.rotate(x.data(), cos.data(), sin.data(), heads, width, out.data());
    const int64_t half = width / 2;
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t c = i % width;
        const double other = c < half ? -x[i + half] : x[i - half];
        expect("rotation", kernels.name, out[i], double(x[i]) * cos[c] + other * sin[c], 1e-5);
    }
}

void check_swiglu(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> x = dice.numbers(rows * 2 * width);
    Array<float> out(rows * width);
    kernels.swiglu(x.data(), rows, width, out.data());
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t at = i / width * 2 * width + i % width;
        const double gate = x[at], up = x[at + width];
        expect("gated unit", kernels.name, out[i], gate / (1 + std::exp(-gate)) * up, 1e-5);
    }
}

void check_merge(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> a = dice.numbers(rows * width), b = dice.numbers(rows * width);
    Array<float> a_lse = dice.numbers(rows);
    const Array<float> b_lse = dice.numbers(rows);
    a_lse[0] = -INFINITY;
    Array<float> out(rows * width), lse(rows);
    kernels.merge({a.data(), a_lse.data()}, {b.data(), b_lse.data()}, rows, width, out.data(), lse.data());
    for (int64_t i = 0; i < out.size(); ++i) {
        const double weight_a = std::exp(double(a_lse[i / width])), weight_b = std::exp(double(b_lse[i / width]));
        expect("merge", kernels.name, out[i], (a[i] * weight_a + b[i] * weight_b) / (weight_a + weight_b), 1e-5);
        expect("merged lse", kernels.name, lse[i / width], std::log(weight_a + weight_b), 1e-5);
    }
}

void check_scouts(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> q = dice.numbers(rows * width), scout = dice.numbers(rows * width),
                       mean_key = dice.numbers(rows * width), far = dice.numbers(rows), near = dice.numbers(rows);
    Array<float> lse(rows), scout_error(1);
    kernels.correct(q.data(), scout.data(), mean_key.data(), 0.3f, rows, width, far.data(), lse.data());
    kernels.scout_error(q.data(), scout.data(), far.data(), near.data(), rows, width, scout_error.data());
    double most = 0;
    for (int64_t r = 0; r < rows; ++r) {
        double shift = 0, error = 0, size = 0;
        for (int64_t c = r * width; c < (r + 1) * width; ++c) {
            const double off = double(q[c]) - scout[c];
            shift += off * mean_key[c], error += off * off, size += double(q[c]) * q[c];
        }
        expect("corrected lse", kernels.name, lse[r], far[r] + 0.3 * shift, 1e-4);
        most = std::max(most, std::sqrt(error / size) / (1 + std::exp(double(near[r]) - far[r])));
    }
    expect("scout_error", kernels.name, scout_error[0], most, 1e-5);
}

}  // namespace

void test_linear(const Kernels& kernels, WorkerThreads& workers) {
    for (const DType dtype : kEveryDType) {
        check_linear(kernels, workers, 1, 1, 64, 48, dtype);
        check_linear(kernels, workers, 1, 7, 33, 17, dtype);
        check_linear(kernels, workers, 3, 1, 24, 5, dtype);
        check_linear(kernels, workers, 1, 4, 7, 530, dtype);
        check_linear(kernels, workers, 1, 2, 600, 700, dtype);
    }
}

void test_rows(const Kernels& kernels) {
    for (const int64_t width : {2, 6, 16, 34, 64, 100}) {
        check_norm(kernels, 3, width);
        check_rotate(kernels, 3, width);
        check_swiglu(kernels, 3, width / 2);
    }
}

void test_merging(const Kernels& kernels) {
    for (const int64_t width : {1, 7, 16, 33, 80})
        for (const int64_t rows : {1, 5}) check_merge(kernels, rows, width), check_scouts(kernels, rows, width);
}

void test_reading(WorkerThreads& workers) {
    for (const int64_t words : {0, 32, 96, 131072 + 32}) {
        Array<uint64_t> data(words);
        uint64_t want = 0;
        for (int64_t i = 0; i < words; ++i) want += data[i] = uint64_t(i) * 0x9e3779b97f4a7c15u;
        std::atomic<uint64_t> sum{0};
        finish(workers, make_read_work(*supported_kernels().back(), data.data(), words * 8, sum, workers.count()));
        if (sum != want) fail("sum of words", "any", double(sum), double(want));
    }
}

}  // namespace testing
