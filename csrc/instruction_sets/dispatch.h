// Chooses among the instruction sets that were built and that this CPU has.
#pragma once

#include <string>
#include <vector>

#include "bodies/kernels.h"

namespace scout {

// Worst to best; never empty.
std::vector<const Kernels*> supported_kernels();

// `name` is one of the supported, or "auto" for the best. Throws std::invalid_argument.
const Kernels& find_kernels(const std::string& name);

}  // namespace scout
