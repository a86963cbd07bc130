// What stands for the kernels' `words.cuh` on a CPU: the same functions in C++, and those of CUDA that kernels call.
//
// A program's threads are threads of the CPU. What a warp does together waits for all its lanes.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define LOWEST (-3.0e38f)

struct alignas(8) Two { u32 x, y; };
struct alignas(16) Four { u32 x, y, z, w; };

struct Place { unsigned x, y, z; };
struct Warp {
    std::barrier<> lanes{32};
    u32 words[32][6];
};
inline thread_local Place threadIdx, blockIdx;
inline thread_local Warp* own_warp;
inline thread_local std::deque<std::vector<std::function<void()>>> copies(1);
inline Place gridDim;
inline std::barrier<>* program;

inline int lane_of_thread() { return threadIdx.x % 32; }
inline void __syncwarp() { own_warp->lanes.arrive_and_wait(); }
inline void __syncthreads() { program->arrive_and_wait(); }

// Calls get(words), with what each lane of the warp has put there.
template <class Get>
auto together(std::initializer_list<u32> put, Get get) {
    std::copy(put.begin(), put.end(), own_warp->words[lane_of_thread()]);
    __syncwarp();
    auto result = get(own_warp->words);
    __syncwarp();
    return result;
}

template <class Number>
Number shuffled(Number number, int from) {
    static_assert(sizeof(Number) == 4);
    return std::bit_cast<Number>(together({std::bit_cast<u32>(number)}, [&](auto& words) { return words[from][0]; }));
}
template <class Number>
Number __shfl_sync(u32, Number number, int lane) { return shuffled(number, lane % 32); }
template <class Number>
Number __shfl_xor_sync(u32, Number number, int mask) { return shuffled(number, lane_of_thread() ^ mask); }
template <class Number>
Number __shfl_up_sync(u32, Number number, int apart) {
    return shuffled(number, lane_of_thread() >= apart ? lane_of_thread() - apart : lane_of_thread());
}
inline u32 __reduce_add_sync(u32, u32 number) {
    return together({number}, [](auto& words) {
        u32 sum = 0;
        for (auto& lane : words) sum += lane[0];
        return sum;
    });
}
inline u32 __ballot_sync(u32, bool vote) {
    return together({vote}, [](auto& words) {
        u32 votes = 0;
        for (int lane = 0; lane < 32; ++lane) votes |= words[lane][0] << lane;
        return votes;
    });
}
inline int __popc(u32 bits) { return std::popcount(bits); }
inline int atomicAdd(int* place, int more) { return std::atomic_ref(*place).fetch_add(more); }
inline float __uint_as_float(u32 bits) { return std::bit_cast<float>(bits); }
inline u32 __float_as_uint(float number) { return std::bit_cast<u32>(number); }
inline u32 __byte_perm(u32 a, u32 b, u32 choice) {
    const u64 both = static_cast<u64>(b) << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<u32>(both >> 8 * (choice >> 4 * i & 7) & 255) << 8 * i;
    return result;
}

inline float half_of(u32 pair, bool high) {
    return static_cast<float>(std::bit_cast<_Float16>(static_cast<u16>(high ? pair >> 16 : pair)));
}
inline u32 halves(float low, float high) {
    const auto bits = [](float number) { return std::bit_cast<u16>(static_cast<_Float16>(number)); };
    return bits(low) | static_cast<u32>(bits(high)) << 16;
}
inline u32 times(u32 a, u32 b) {
    return halves(half_of(a, false) * half_of(b, false), half_of(a, true) * half_of(b, true));
}
inline float power_of_two(float x) { return std::exp2(x); }
inline float log_of_two(float x) { return std::log2(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float root_of(float x) { return std::sqrt(x); }
inline float reciprocal_root(float x) { return 1 / std::sqrt(x); }
inline float query_at(const void* q, i64 place) {
#if QUERY == 0
    return static_cast<const float*>(q)[place];
#elif QUERY == 1
    return __uint_as_float(static_cast<u32>(static_cast<const u16*>(q)[place]) << 16);
#else
    return static_cast<float>(static_cast<const _Float16*>(q)[place]);
#endif
}

// The matrix unit: see the kernels' `multiply` for what each lane holds.
inline void multiply(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    together({a0, a1, a2, a3, b0, b1}, [&](auto& words) {
        const int r = lane_of_thread() / 4, t = lane_of_thread() % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = r, high_row = i / 2, column = 2 * t + i % 2;
            for (int k = 0; k < 16; ++k) {  // places k of a row lie in lane k % 8 / 2, its words k / 8
                const int lane = k % 8 / 2, upper = k / 8;
                sum[i] += half_of(words[4 * row + lane][2 * upper + high_row], k % 2) *
                          half_of(words[4 * column + lane][4 + upper], k % 2);
            }
        }
        return 0;
    });
}

// Copies are made as late as a kernel allows.
inline void copy_16_bytes(void* to, const void* from) {
    copies.back().push_back([=] { std::memcpy(to, from, 16); });
}
inline void end_of_copies() { copies.emplace_back(); }
template <int SETS>
void wait_for_copies() {
    while (copies.size() - 1 > SETS) {
        for (auto& copy : copies.front()) copy();
        copies.pop_front();
    }
}

template <class... Arguments, std::size_t... Is>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Is...>) {
    kernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[Is])...);
}

// Runs every program of a grid, one after the other.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), const int* grid, int threads, void** arguments) {
    gridDim = {static_cast<unsigned>(grid[0]), static_cast<unsigned>(grid[1]), static_cast<unsigned>(grid[2])};
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) {
                std::barrier<> all(threads);
                program = &all;
                std::vector<Warp> warps(threads / 32);
                std::vector<std::thread> running;
                for (unsigned i = 0; i < static_cast<unsigned>(threads); ++i)
                    running.emplace_back([&, i] {
                        threadIdx = {i, 0, 0}, blockIdx = {x, y, z}, own_warp = &warps[i / 32];
                        call(kernel, arguments, std::index_sequence_for<Arguments...>());
                    });
                for (auto& one : running) one.join();
            }
}
