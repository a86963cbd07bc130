#include "instruction_sets/dispatch.h"

#include <stdexcept>

namespace scout {

extern const Kernels kernels_portable;
#ifdef SCOUT_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
extern const Kernels kernels_avx512bf16;
#endif

std::vector<const Kernels*> supported_kernels() {
    std::vector<const Kernels*> found = {&kernels_portable};
#ifdef SCOUT_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        found.push_back(&kernels_avx2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            found.push_back(&kernels_avx512);
            if (__builtin_cpu_supports("avx512vnni")) {
                found.push_back(&kernels_avx512vnni);
                if (__builtin_cpu_supports("avx512bf16")) found.push_back(&kernels_avx512bf16);
            }
        }
    }
#endif
    return found;
}

const Kernels& find_kernels(const std::string& name) {
    const auto found = supported_kernels();
    if (name == "auto") return *found.back();
    std::string names;
    for (const Kernels* kernels : found) {
        if (name == kernels->name) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("isa='" + name + "' is not among those this CPU and build support: auto, " + names);
}

}  // namespace scout
