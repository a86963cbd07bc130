// Products with stored blocks, in every kind, and their numbers.
#include "testing.h"

namespace testing {
namespace {

// The bytes of a block at which its float16 scales begin.
std::vector<int> scales_of(int kind) {
    switch (kind) {
        case kQ4_1: case kQ5_1: case kQ4_K: case kQ5_K: return {0, 2};
        case kQ2_K: return {80, 82};
        case kQ3_K: return {108};
        case kQ6_K: return {208};
        default: return {0};
    }
}

Array<uint8_t> random_lines(const StoredFormat& format, int64_t blocks, Dice& dice) {
    Array<uint8_t> data(blocks * format.bytes);
    for (int64_t i = 0; i < data.size(); ++i) data[i] = uint8_t(dice.below(256));
    for (int64_t b = 0; b < blocks; ++b)
        for (const int at : scales_of(format.kind)) {
            const uint16_t scale = uint16_t(dice.below(2) << 15 | (10 + dice.below(4)) << 10 | dice.below(1024));
            std::memcpy(data.data() + b * format.bytes + at, &scale, 2);
        }
    return data;
}

// The numbers are those of the portable kernels, which tests in Python compare with the package gguf.
void check_stored(const Kernels& kernels, WorkerThreads& workers, const StoredFormat& format, int64_t B, int64_t I,
                  int64_t O) {
    Dice dice;
    const Array<float> x = dice.numbers(B * I);
    const Array<uint8_t> weight = random_lines(format, O * I / format.block, dice);
    const int64_t line = I / format.block * format.bytes;
    Array<float> numbers(O * I), own(O * I), out(B * O);
    Array<uint16_t> narrow(O * I);
    const auto expand = [&](const Kernels& by, DType dtype, void* to) {
        finish(workers, make_expand_work(by, {format.kind, weight.data(), line, O, I, dtype, to}, workers.count()));
    };
    expand(*supported_kernels().front(), kFloat32, numbers.data());
    expand(kernels, kFloat32, own.data());
    expand(kernels, kBFloat16, narrow.data());
    for (int64_t i = 0; i < O * I; ++i) {
        expect("numbers", kernels.name, own[i], numbers[i], 1e-5);
        const uint32_t bits = uint32_t(narrow[i]) << 16;
        float wide;
        std::memcpy(&wide, &bits, 4);
        expect("bfloat16 numbers", kernels.name, wide, numbers[i], 1.0 / 256);
    }
    const auto check_products = [&] {
        for (int64_t i = 0; i < out.size(); ++i) {
            double want = 0, size = 0;
            for (int64_t c = 0; c < I; ++c) {
                const double product = double(x[i / O * I + c]) * numbers[i % O * I + c];
                want += product, size += std::abs(product);
            }
            expect("stored product", kernels.name, out[i], want, 1e-4 * size / std::max(1.0, std::abs(want)));
        }
    };
    const LinearPart part{format.kind, (const char*)weight.data(), 0, line, O};
    const LinearCall call{x.data(), 1, B, I, O, {part}, out.data()};
    finish(workers, make_linear_work(kernels, call, workers.count()));
    check_products();
    if (!kernels.pack_many) return;
    finish(workers, make_many_rows_work(kernels, call, workers.count()));
    check_products();
}

}  // namespace

void test_stored(const Kernels& kernels, WorkerThreads& workers) {
    for (const StoredFormat& format : kStoredFormats) {
        if (format.kind < kStored) continue;
        check_stored(kernels, workers, format, 1, format.block, 1);
        check_stored(kernels, workers, format, 3, 2 * format.block, 33);
        check_stored(kernels, workers, format, 6, 9 * format.block, 5);
        check_stored(kernels, workers, format, 17, 9 * format.block, 33);
        check_stored(kernels, workers, format, 100, format.block, 5);
    }
}

}  // namespace testing
