// What the native tests share: memory that ends where access is forbidden, numbers to fill it with, and comparison.
//
// The memory page behind an array may not be touched by any instruction. So vector loads are checked too, which a
// sanitizer cannot see where they are written as intrinsics.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "instruction_sets/dispatch.h"
#include "tasks/calls.h"
#include "runtime/worker_threads.h"

namespace testing {

using namespace scout;

[[noreturn]] inline void fail(const char* what, const char* isa, double got, double want) {
    std::fprintf(stderr, "%s, %s: %.9g instead of %.9g\n", what, isa, got, want);
    std::exit(1);
}

// A number within `error` of what it should be, relative where that is above 1.
inline void expect(const char* what, const char* isa, double got, double want, double error) {
    if (got == want) return;
    if (!(std::abs(got - want) <= error * std::max(1.0, std::abs(want)))) fail(what, isa, got, want);
}

// `count` values whose end is the end of a memory page, with nothing behind it; poisoned before the first.
template <class T>
class Array {
  public:
    explicit Array(int64_t count) : count_(count) {
        const int64_t page = sysconf(_SC_PAGESIZE), bytes = count * int64_t(sizeof(T));
        const int64_t whole = (bytes + page - 1) / page * page;
        size_ = whole + page;
        void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) std::perror("mmap"), std::exit(1);
        start_ = static_cast<char*>(memory);
        mprotect(start_ + whole, page, PROT_NONE);
        data_ = reinterpret_cast<T*>(start_ + whole - bytes);
        ASAN_POISON_MEMORY_REGION(start_, whole - bytes);
    }
    Array(Array&& other) noexcept
        : count_(other.count_), size_(other.size_), start_(std::exchange(other.start_, nullptr)), data_(other.data_) {}
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() {
        if (!start_) return;
        ASAN_UNPOISON_MEMORY_REGION(start_, size_);
        munmap(start_, size_);
    }

    int64_t size() const { return count_; }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

  private:
    int64_t count_, size_;
    char* start_;
    T* data_;
};

// The same numbers on every machine.
class Dice {
  public:
    int64_t below(int64_t end) { return int64_t(engine_() % uint64_t(end)); }
    float number() { return (float(below(1 << 20)) / (1 << 19) - 1) * 3; }

    Array<float> numbers(int64_t count) {
        Array<float> x(count);
        for (int64_t i = 0; i < count; ++i) x[i] = number();
        return x;
    }

    Array<int32_t> indices(int64_t count, int64_t end) {
        Array<int32_t> x(count);
        for (int64_t i = 0; i < count; ++i) x[i] = int32_t(below(end));
        return x;
    }

  private:
    std::mt19937_64 engine_{7};
};

// Numbers in one of the dtypes, and what they are.
struct Stored {
    Array<char> bytes;
    std::vector<double> value;

    Stored(DType dtype, int64_t count, Dice& dice) : bytes(count * (dtype == kFloat32 ? 4 : 2)), value(count) {
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t sign = uint32_t(dice.below(2)), power = uint32_t(dice.below(4));  // 1/8 to 2
            const uint32_t most = uint32_t(dice.below(128));  // the seven bits of a fraction that all dtypes have
            value[i] = std::ldexp(1 + most / 128.0, int(power) - 3) * (sign ? -1 : 1);
            const uint32_t wide = sign << 31 | (124 + power) << 23 | most << 16;
            const uint32_t half = sign << 15 | (12 + power) << 10 | most << 3;
            if (dtype == kFloat32) std::memcpy(bytes.data() + 4 * i, &wide, 4);
            const uint16_t narrow = uint16_t(dtype == kBFloat16 ? wide >> 16 : half);
            if (dtype != kFloat32) std::memcpy(bytes.data() + 2 * i, &narrow, 2);
        }
    }
};

inline void finish(WorkerThreads& workers, std::unique_ptr<Work> work) {
    workers.submit(std::move(work), true)->wait();
}

inline constexpr DType kEveryDType[] = {kFloat32, kBFloat16, kFloat16};

void test_partial(const Kernels& kernels, WorkerThreads& workers);
void test_causal(const Kernels& kernels, WorkerThreads& workers);
void test_scores(const Kernels& kernels, WorkerThreads& workers);
void test_top_blocks(const Kernels& kernels, WorkerThreads& workers);
void test_linear(const Kernels& kernels, WorkerThreads& workers);
void test_layers(const Kernels& kernels, WorkerThreads& workers);
void test_stored(const Kernels& kernels, WorkerThreads& workers);
void test_rows(const Kernels& kernels);
void test_merging(const Kernels& kernels);
void test_reading(WorkerThreads& workers);
void test_worker_threads();
void test_handovers();

}  // namespace testing
