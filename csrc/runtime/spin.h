// Waiting without sleeping, for what takes microseconds.
#pragma once

#include <thread>

namespace scout {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Looks at `ready` some times, until it is true; returns whether it is. Whoever goes on looking yields in between: without
// that, two threads stayed on one core. A call of the system takes longer than a look.
template <class Ready>
bool looked(Ready ready) {
    for (int i = 0; i < 16; ++i, pause())
        if (ready()) return true;
    return false;
}

template <class Ready>
void spin_until(Ready ready) {
    while (!looked(ready)) std::this_thread::yield();
}

}  // namespace scout
